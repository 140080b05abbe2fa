"""A decoder on its way to an artifact: its checkpoint read and checked, its graphs written, its manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
from onnx import helper

from vorta_server.compiler.artifact import SLOT_COPY_FILE, ArtifactWriter, FileEntry, GraphEntry, Manifest, SourceEntry
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError, check_tokenizer
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.decoder import DecoderGraph, compiled_head_dim
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.opset_decoder import slot_copy
from vorta_server.compiler.plan import Kernels, plan_graphs
from vorta_server.compiler.spec import DecoderSpec
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
        self._length = _model_len(spec, max_model_len)
        self._tokens = _read_tokens(checkpoint, config, spec)
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


class _Tokens(msgspec.Struct, frozen=True, kw_only=True):
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def _read_tokens(checkpoint: Checkpoint, config: ConfigReader, spec: DecoderSpec) -> _Tokens:
    """The special tokens; generation_config.json has the last word, as in the reference implementation."""
    check_tokenizer(checkpoint, spec.vocab_size)
    generation = ConfigReader(checkpoint.generation_config, checkpoint.folder / "generation_config.json")

    def token_ids(field: str) -> tuple[int, ...]:
        reader = generation if generation.has(field) else config
        ids = reader.token_ids(field)
        for token_id in ids:
            if token_id >= spec.vocab_size:
                raise reader.error(field, f"is {token_id}, but vocab_size is {spec.vocab_size}")
        return ids

    bos, pad = token_ids("bos_token_id"), token_ids("pad_token_id")
    return _Tokens(bos=bos[0] if bos else None, eos=token_ids("eos_token_id"), pad=pad[0] if pad else None)


def _model_len(spec: DecoderSpec, wanted: int | None) -> int:
    """The artifact's length: what is wanted, up to what the rotary embedding was scaled for."""
    rope = spec.rope
    limit = spec.max_position_embeddings
    if rope.rope_type in ("linear", "dynamic"):
        limit = int(limit * max(rope.factor, 1.0))
    elif rope.rope_type in ("llama3", "yarn"):
        limit = max(limit, int(rope.original_max_position_embeddings * rope.factor))
    if wanted is None:
        return spec.max_position_embeddings
    if type(wanted) is not int or not 1 <= wanted <= limit:
        raise CheckpointError(f"max_model_len must be between 1 and {limit}, not {wanted!r}", field="max_model_len")
    return wanted
