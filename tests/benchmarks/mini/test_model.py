"""The torch model of the recipe; needs torch, which only the reference environment has."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

import vorta_server

torch = pytest.importorskip("torch")

from vorta_bench.mini.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from vorta_bench.mini.generation import TorchCompleter, complete_tokens  # noqa: E402
from vorta_bench.mini.model import KvCache, MiniModel, ModelConfig  # noqa: E402
from vorta_bench.mini.optimizer import orthogonalize  # noqa: E402
from vorta_bench.mini.quantization import quantize_rows, quantize_weight, straight_through  # noqa: E402
from vorta_bench.mini.train import attention_mask, weights_as  # noqa: E402
from vorta_bench.tasks import VERIFIABLE_TASKS, evaluate, mean_accuracy  # noqa: E402

pytestmark = pytest.mark.reference
FOLDER = Path(vorta_server.__file__).parent / "models" / "vorta-mini"
SMALL = ModelConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64
)


def test_int4_matches_its_definition() -> None:
    weight = torch.randn(3, 64)
    result = quantize_weight(weight, "int4")
    for row in range(3):
        for block in range(2):
            values = weight[row, block * 32 : block * 32 + 32]
            scale = values[values.abs().argmax()] / -8
            levels = (torch.round(values / scale) + 8).clamp(0, 15)
            assert torch.allclose(result[row, block * 32 : block * 32 + 32], (levels - 8) * scale)


def test_quantising_zeros_and_twice() -> None:
    assert torch.equal(quantize_weight(torch.zeros(2, 32), "int4"), torch.zeros(2, 32))
    weight = torch.randn(4, 64)
    for precision in ("int8", "int4"):
        once = quantize_weight(weight, precision)
        assert torch.allclose(quantize_weight(once, precision), once, atol=1e-6)
    assert (quantize_rows(weight) - weight).abs().max() <= weight.abs().max() / 127


def test_gradient_passes_straight_through() -> None:
    weight = torch.randn(4, 32, requires_grad=True)
    (straight_through(weight, "int4") * 3).sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 32), 3.0))


def test_weights_come_back() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 32))
    before = parameter.detach().clone()
    with weights_as([parameter], "int4"):
        assert torch.allclose(parameter, quantize_weight(before, "int4"))
    assert torch.equal(parameter, before)


def test_orthogonalize_brings_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 32, 64)))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_mask_keeps_documents_apart() -> None:
    mask = attention_mask(torch.tensor([[1, 1, 2, 2]]))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_cache_equals_one_pass_and_padding_does_not_matter() -> None:
    torch.manual_seed(1)
    model = MiniModel(SMALL).eval()
    tokens = torch.randint(0, 64, (1, 10))
    full = torch.ones(1, 1, 10, 10, dtype=torch.bool).tril()
    whole = model.hidden(tokens, torch.arange(10)[None], full)
    caches = [KvCache() for _ in range(2)]
    first = model.hidden(tokens[:, :6], torch.arange(6)[None], full[..., :6, :6], caches)
    rest = model.hidden(tokens[:, 6:], torch.arange(6, 10)[None], full[..., 6:, :], caches)
    assert torch.allclose(torch.cat([first, rest], 1), whole, atol=1e-5)
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5, 6]]
    together = complete_tokens(model, prompts, set(), 5)
    assert together == [complete_tokens(model, [prompt], set(), 5)[0] for prompt in prompts]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    model = MiniModel(ModelConfig())
    save_checkpoint(model, tokenizer, tmp_path)
    again, _ = load_checkpoint(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half().float())


@pytest.mark.slow
def test_shipped_model_scores() -> None:
    """Held-out exact match, a sample of 20 cases a task; README states the figure of the whole measurement."""
    model, tokenizer = load_checkpoint(FOLDER)
    assert mean_accuracy(evaluate(TorchCompleter(model, tokenizer), tasks=VERIFIABLE_TASKS, num_cases=20)) >= 0.9
