"""Several graphs of one decoder share one weight file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, random_tensors, write_checkpoint
from tests.server.compiler.test_parity import prompt
from vorta_server.compiler.checkpoint import Checkpoint
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.decoder import DecoderGraph, compiled_head_dim
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.linear import BlockLowering, Float32Lowering
from vorta_server.compiler.weight import DecoderWeights


def test_two_graphs_on_one_file(tmp_path: Path) -> None:
    """What both need alike (norms, rope tables, an equally stored embedding) is written once; both compute."""
    config = CASES[0].config
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config))
    ids = prompt(10)
    expected = reference.logits(config, random_tensors(config), ids)
    sizes = []
    with Checkpoint(source) as checkpoint, (tmp_path / "weights.bin").open("wb") as stream:
        spec = read_spec(ConfigReader(checkpoint.config, source / "config.json"))
        weights = DecoderWeights(checkpoint, spec)
        file = WeightFile(stream, "weights.bin")
        plans = {"int8": BlockLowering("int8"), "again": BlockLowering("int8"), "fp32": Float32Lowering()}
        for name, lowering in plans.items():
            graph = GraphBuilder(file)
            DecoderGraph(graph, spec, weights, lowering, 64, lambda _layer: None).build()
            onnx.save(graph.model("test"), tmp_path / f"{name}.onnx")
            sizes.append(file.num_bytes)
    assert sizes[0] == sizes[1] < sizes[2]
    feed = {
        "input_ids": np.array([ids]),
        "seqlens_k": np.array([9], np.int32),
        "total_sequence_length": np.array(10, np.int32),
        "output_rows": np.arange(10),
    }
    shape = (1, spec.num_kv_heads, 64, compiled_head_dim(spec))
    for layer in range(spec.num_layers):
        feed |= {f"past_{kind}_{layer}": np.zeros(shape, np.float32) for kind in ("key", "value")}
    signatures = []
    for name, bound in (("int8", 0.1), ("again", 0.1), ("fp32", 1e-4)):
        session = ort.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        signatures.append(
            [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
        )
        logits = session.run(["logits"], feed)[0]
        assert np.abs(logits - expected).max() / np.abs(expected).max() < bound
    assert signatures[0] == signatures[1] == signatures[2]
