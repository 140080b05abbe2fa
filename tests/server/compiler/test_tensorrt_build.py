"""Real engines of small models, on a machine without a GPU: what `make test-tensorrt` installs and runs.

That an engine computes what its graph says is not tested here, since that takes a GPU; test_opset_encoder.py and
test_opset_decoder.py run the same graphs through ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.compiler.case import CASES, Case
from tests.server.compiler.encoder_case import EMBEDDING_CASES, SCORE_CASES, EncoderCase, write_encoder
from vorta.errors import FailedPrecondition, Internal
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.tensorrt_engine import build_engines, find_tensorrt
from vorta_server.compiler.tensorrt_plan import EngineLimits

try:
    BUILDER = find_tensorrt()
except FailedPrecondition as error:
    pytest.skip(f"engines are not built here: {error}", allow_module_level=True)

pytestmark = pytest.mark.tensorrt

LIMITS = EngineLimits(batch_buckets=(4,), max_tokens=64)
PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int4"]

# A family each: absolute positions, relative ones, rotary ones with windows, causal with grouped heads, a head.
ENCODERS = [
    case
    for case in [*EMBEDDING_CASES, *SCORE_CASES]
    if case.name in ("bert", "mpnet", "modernbert", "qwen3-bare", "bert-score", "modernbert-score-mean")
]
DECODERS = [
    case
    for case in CASES
    if case.name in ("llama-grouped-heads", "mistral-window-of-7", "qwen2-tied", "qwen3-head-of-24-biases-windows")
]


def check(files: list[Path], names: list[str]) -> None:
    assert [path.name.rsplit("-", 2)[0] for path in files] == names
    assert all(path.stat().st_size > 10_000 for path in files)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case.name)
def test_encoder(case: EncoderCase, precision: str, tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source", case)
    compile_checkpoint(source, tmp_path / "artifact", target="tensorrt", precision=precision)
    files = build_engines(tmp_path / "artifact", tmp_path / "engines", limits=LIMITS, builder=BUILDER)
    check(files, ["encode-4"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
def test_decoder(case: Case, precision: str, checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    compile_checkpoint(checkpoint_of(case), tmp_path / "artifact", target="tensorrt", precision=precision)
    files = build_engines(tmp_path / "artifact", tmp_path / "engines", limits=LIMITS, builder=BUILDER)
    check(files, ["prefill-1", "decode-4"])


def test_a_graph_that_tensorrt_does_not_know(artifact_of: Callable[..., Path]) -> None:
    """The cpu's graph has operators of ONNX Runtime's own."""
    file = artifact_of(CASES[0], "fp32") / "model.onnx"
    with pytest.raises(Internal, match=r"TensorRT cannot read model\.onnx: "):
        BUILDER.build(file.read_bytes(), file, {})
