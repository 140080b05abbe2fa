"""The float64 reference and the compiled fp32 graphs of encoders against transformers on torch.

The checkpoints load into transformers without a missing or unexpected tensor, and hidden states and logits agree: 1e-5
relative for the reference (transformers rounds rotary angles to float32), 1e-4 for the graphs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.reference import encoder as reference
from tests.server.compiler.encoder_case import (
    EMBEDDING_CASES,
    SCORE_CASES,
    EncoderCase,
    encoder_tensors,
    head_tensors,
    texts,
    write_encoder,
)
from vorta_kernels import cpu
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.runners.encoder import OnnxEncoder

torch = pytest.importorskip("torch", reason="the reference implementation (torch) is not installed")
transformers = pytest.importorskip("transformers", reason="the reference implementation is not installed")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("default")]

# torch fills these in beside what the checkpoint has; nothing here reads them.
_UNUSED = ("pooler.",)


def graphs(source: Path, folder: Path) -> list[OnnxEncoder]:
    runners = []
    for kernels in ("portable", "vorta") if cpu.compiler() else ("portable",):
        compile_checkpoint(source, folder / kernels, precision="fp32", kernels=kernels)
        runners.append(OnnxEncoder(folder / kernels, threads=1))
    return runners


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", EMBEDDING_CASES, ids=lambda case: case.name)
def test_hidden_states(case: EncoderCase, tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source", case)
    model, report = transformers.AutoModel.from_pretrained(
        source, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    assert [name for name in report["missing_keys"] if not name.startswith(_UNUSED)] == []
    assert not report["mismatched_keys"]
    sequences = texts([90, 1, 160])
    with torch.no_grad():
        expected = [model.eval()(torch.tensor(ids[None]).long()).last_hidden_state[0].numpy() for ids in sequences]
    for ids, states in zip(sequences, expected, strict=True):
        assert error(reference.hidden_states(case.config, encoder_tensors(case.config), ids), states) < 1e-5
    for runner in graphs(source, tmp_path):
        assert error(runner.run(sequences), np.concatenate(expected)) < 1e-4


@pytest.mark.parametrize("case", SCORE_CASES, ids=lambda case: case.name)
def test_logits(case: EncoderCase, tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source", case)
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], f"{kind}: {report[kind]}"
    sequences = texts([90, 3, 160])
    with torch.no_grad():
        expected = np.concatenate([model.eval()(torch.tensor(ids[None]).long()).logits.numpy() for ids in sequences])
    tensors, head = encoder_tensors(case.config), head_tensors(case.config)
    plain = np.stack([reference.logits(case.config, tensors, head, ids) for ids in sequences])
    assert error(plain, expected) < 1e-5
    for runner in graphs(source, tmp_path):
        assert error(runner.run(sequences), expected) < 1e-4
