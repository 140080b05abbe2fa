"""A decoder on its way to an artifact: its checkpoint read and checked, its graphs written, its manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from onnx import helper

from vorta_server.compiler.artifact import SLOT_COPY_FILE, ArtifactWriter, FileEntry, GraphEntry, Manifest, SourceEntry
from vorta_server.compiler.checkpoint import Checkpoint
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.decoder import DecoderGraph, compiled_head_dim
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.opset_decoder import slot_copy
from vorta_server.compiler.plan import Kernels, plan_graphs
from vorta_server.compiler.spec import context_length
from vorta_server.compiler.special_tokens import read_special_tokens
from vorta_server.compiler.weight import DecoderWeights, tensor_shapes

__all__ = ["DecoderModel", "default_block"]

_LARGE_PARAMETERS = 100_000_000


class DecoderModel:
    """A decoder to be compiled; see `compile_checkpoint` for the arguments.

    Raises CheckpointError when the checkpoint or an argument is at fault.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ConfigReader,
        *,
        target: str,
        precision: str,
        kernels: Kernels,
        block: int | None,
        max_model_len: int | None,
    ) -> None:
        self._spec = spec = read_spec(config)
        self._target = target
        self._precision = precision
        # fp32 artifacts are what others are compared with, on ONNX Runtime's operators alone.
        self._kernels: Kernels = "portable" if precision == "fp32" else kernels
        self._weights = DecoderWeights(checkpoint, spec)
        self._length = context_length(spec, max_model_len)
        self._tokens = read_special_tokens(checkpoint, config, spec)
        self._num_parameters = sum(math.prod(shape) for shape in tensor_shapes(spec).values())
        self._plans = plan_graphs(target, precision, self._kernels, block or default_block(self._num_parameters))

    def write_graphs(self, writer: ArtifactWriter, weight_file: WeightFile, report: Callable[[float], None]) -> None:
        """Writes the graphs, and their weights to the weight file; reports the fraction done, 0 to 1."""
        spec = self._spec
        steps = len(self._plans) * (spec.num_layers + 1)
        for index, plan in enumerate(self._plans):
            graph = GraphBuilder(weight_file, is_standard=self._target == "tensorrt")
            first = index * (spec.num_layers + 1)

            def layer_begins(layer: int, first: int = first) -> None:
                report((first + layer) / steps)

            DecoderGraph(graph, spec, self._weights, plan.lowering, self._length, layer_begins).build()
            writer.write(plan.file, graph.model(spec.model_type).SerializeToString())
        if self._target == "tensorrt":
            copier = GraphBuilder(weight_file, is_standard=True)
            cache_type = helper.np_dtype_to_tensor_dtype(self._plans[0].lowering.element)
            slot_copy(copier, cache_type, spec.num_kv_heads, compiled_head_dim(spec))
            writer.write(SLOT_COPY_FILE, copier.model("copy_slot").SerializeToString())

    def manifest(self, files: dict[str, FileEntry], fingerprint: str, versions: Mapping[str, str]) -> Manifest:
        """What the artifact's manifest says."""
        spec = self._spec
        return Manifest(
            architecture=spec.architecture,
            model_type=spec.model_type,
            target=self._target,
            precision=self._precision,
            kernels=self._kernels,
            num_parameters=self._num_parameters,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=compiled_head_dim(spec),
            max_model_len=self._length,
            bos_token_id=self._tokens.bos,
            eos_token_ids=self._tokens.eos,
            pad_token_id=self._tokens.pad,
            kv_dtype=self._plans[0].lowering.element.name,
            graphs=tuple(GraphEntry(file=plan.file, min_rows=plan.min_rows) for plan in self._plans),
            files=files,
            source=SourceEntry(fingerprint=fingerprint),
            versions=dict(versions),
        )


def default_block(num_parameters: int) -> int:
    """Weights that share a scale: 32 in models that fit a processor's caches, 128 (as in GPTQ and AWQ checkpoints) in
    others, whose speed at few rows is that of reading scales and weights from memory."""
    return 32 if num_parameters < _LARGE_PARAMETERS else 128
