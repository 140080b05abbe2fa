"""The float64 reference and the compiled fp32 graphs against transformers on torch.

This is what anchors every other test here: the checkpoints load into transformers without a missing or
unexpected tensor, and the reference decoder computes the same logits (1e-5 relative: transformers rounds
frequencies and angles to float32) and the same 64 greedy tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, VOCAB_SIZE, Case, GraphRunner, random_tensors
from tests.server.compiler.test_parity import error, prompt
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.rope import inverse_frequencies

torch = pytest.importorskip("torch", reason="the reference implementation (torch) is not installed")
transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("default")]

standard_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.is_standard], ids=lambda case: case.name
)


@pytest.fixture
def load(checkpoint_of: Callable[[Case], Path]) -> Callable[[Case], transformers.PreTrainedModel]:
    def model_of(case: Case) -> transformers.PreTrainedModel:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint_of(case), dtype=torch.float64, attn_implementation="eager", output_loading_info=True
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not report[kind], f"{kind}: {report[kind]}"
        return model.eval()

    return model_of


@standard_case
def test_logits(
    case: Case,
    load: Callable[[Case], transformers.PreTrainedModel],
    artifact_of: Callable[[Case, str], Path],
) -> None:
    ids = prompt(45)
    with torch.no_grad():
        expected = load(case)(torch.tensor([ids])).logits[0].numpy()
    plain = reference.logits(case.config, random_tensors(case.config), ids)
    assert np.abs(plain - expected).max() / np.abs(expected).max() < 1e-5
    assert error(GraphRunner(artifact_of(case, "fp32")).step([ids], [0]), expected) < 1e-4


@standard_case
def test_frequencies(case: Case, load: Callable[[Case], transformers.PreTrainedModel]) -> None:
    """The frequencies agree to float32's last bits, so that they do at position 100,000 too."""
    theirs = load(case).model.rotary_emb
    rope = read_spec(ConfigReader(case.config, Path("config.json"))).rope
    np.testing.assert_allclose(inverse_frequencies(rope, 128), theirs.inv_freq.numpy(), rtol=5e-7)
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling)


@standard_case
def test_64_greedy_tokens(
    case: Case,
    load: Callable[[Case], transformers.PreTrainedModel],
    artifact_of: Callable[[Case, str], Path],
) -> None:
    start = prompt(20)
    generated = load(case).generate(
        torch.tensor([start]),
        attention_mask=torch.ones(1, len(start), dtype=torch.long),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=VOCAB_SIZE,  # a token that never comes
        pad_token_id=0,
    )
    runner = GraphRunner(artifact_of(case, "fp32"))
    ours = list(start)
    logits = runner.step([ours], [0], rows=[len(ours) - 1])
    for _ in range(64):
        ours.append(int(logits[0].argmax()))
        logits = runner.step([ours[-1:]], [len(ours) - 1])
    assert ours == generated[0].tolist()
