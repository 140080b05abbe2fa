"""What tests of standard-operator graphs share: checks of a graph's operators, and a session for decoders."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vorta_server.compiler.artifact import load_manifest

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def check_standard(artifact: Path) -> onnx.ModelProto:
    """Asserts that the graph is valid, shapes and types included, and has nothing but ONNX's own operators."""
    path = artifact / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [opset.domain for opset in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}
    return model


class OpsetRunner:
    """Steps over KV slots of `capacity` positions, past and present sharing one buffer."""

    def __init__(self, artifact: Path, *, batch: int = 1, capacity: int = 128) -> None:
        self.manifest = load_manifest(artifact)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self._session = ort.InferenceSession(artifact / "model.onnx", options, providers=["CPUExecutionProvider"])
        shape = (batch, self.manifest.num_kv_heads, capacity, self.manifest.head_dim)
        self.slots = {
            f"{kind}_{layer}": ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, DTYPES[self.manifest.kv_dtype]))
            for layer in range(self.manifest.num_layers)
            for kind in ("key", "value")
        }

    def step(self, ids: npt.ArrayLike, past: list[int], rows: list[int] | None = None) -> npt.NDArray[np.float32]:
        """Runs ids [B, S] behind `past` tokens of each row; logits of the flattened positions `rows` (default all)."""
        tokens = np.asarray(ids, np.int64)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", tokens)
        binding.bind_cpu_input("past_lengths", np.asarray(past, np.int64))
        binding.bind_cpu_input("output_rows", np.arange(tokens.size) if rows is None else np.asarray(rows, np.int64))
        for name, value in self.slots.items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        logits: npt.NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits
