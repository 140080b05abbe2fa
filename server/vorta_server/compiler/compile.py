"""The compiler's entry: checkpoint folder in, artifact folder out."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx

from vorta.errors import FailedPrecondition
from vorta_server.compiler.artifact import (
    ArtifactWriter,
    GraphEntry,
    Manifest,
    Opener,
    SourceEntry,
)
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.decoder import DecoderGraph, compiled_head_dim
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.plan import PRECISIONS, Kernels, plan_graphs
from vorta_server.compiler.spec import DecoderSpec
from vorta_server.compiler.weight import DecoderWeights, tensor_shapes

# Raised whenever the same checkpoint would compile to another artifact, so that caches compile anew.
COMPILER_VERSION = "4"

TARGETS = ("cpu",)
_PLANNED_TARGETS = ("cuda", "tensorrt")
_WEIGHT_FILE = "weights.bin"
_BLOCKS = (16, 32, 64, 128, 256)
_LARGE_PARAMETERS = 100_000_000

Progress = Callable[[str, float], None]


def check_request(target: str, precision: str) -> None:
    """Refuses a target or precision that cannot be compiled.

    Raises FailedPrecondition for a target of a later version, CheckpointError for any other value.
    """
    if target in _PLANNED_TARGETS:
        raise FailedPrecondition(
            f"target {target} is not available in this version; available: {', '.join(TARGETS)}",
            reason="UNIMPLEMENTED",
            field="target",
        )
    if target not in TARGETS:
        raise CheckpointError(f"target {target!r} is unknown; available: {', '.join(TARGETS)}", field="target")
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"precision {precision!r} is not available on the cpu; available: {', '.join(PRECISIONS)}",
            field="precision",
        )


def compile_checkpoint(
    source: Path,
    out: Path,
    *,
    target: str = "cpu",
    precision: str,
    kernels: Kernels = "portable",
    block: int | None = None,
    max_model_len: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    opener: Opener | None = None,
) -> Manifest:
    """Compiles the checkpoint in `source` to an artifact at `out`, which must not hold anything yet.

    Args:
        precision: "fp32", "int8" or "int4"; see quantise.py and linear.py for what they mean.
        kernels: "vorta" for graphs that run faster and need `vorta_kernels.cpu`; fp32 is always portable.
        block: weights of int8 and int4 that share a scale: 16, 32, 64, 128 or 256; default see `default_block`.
        max_model_len: positions of the artifact, prompt and output; default what the checkpoint names.
        progress: called with what is being done and the fraction done, 0 to 1.
        overwrite: replace an artifact that is at `out`.
        opener: opens a new file for writing in binary; a seam for tests.

    Raises:
        CheckpointError: the checkpoint or an argument is at fault; `field` names what.
        vorta.errors.FailedPrecondition: the target comes in a later version.
        ArtifactError: `out` is taken.
        StorageError: the artifact could not be written (a full disk); nothing is left behind.
    """
    report = progress or (lambda _stage, _fraction: None)
    check_request(target, precision)
    if block is not None and block not in _BLOCKS:
        raise CheckpointError(f"block is {block}; available: {', '.join(map(str, _BLOCKS))}", field="block")
    if precision == "fp32":
        kernels = "portable"
    report("reading the checkpoint", 0.0)
    with Checkpoint(source) as checkpoint:
        config = ConfigReader(checkpoint.config, source / "config.json")
        spec = read_spec(config)
        weights = DecoderWeights(checkpoint, spec)
        length = _model_len(spec, max_model_len)
        tokens = _read_tokens(checkpoint, config, spec)
        tokenizer = checkpoint.tokenizer_contents()
        num_parameters = sum(math.prod(shape) for shape in tensor_shapes(spec).values())
        plans = plan_graphs(precision, kernels, block or default_block(num_parameters))
        with ArtifactWriter(out, overwrite=overwrite, opener=opener) as writer:
            with writer.create(_WEIGHT_FILE) as stream:
                weight_file = WeightFile(stream, _WEIGHT_FILE)
                for index, plan in enumerate(plans):
                    graph = GraphBuilder(weight_file)
                    steps = len(plans) * (spec.num_layers + 1)
                    first = index * (spec.num_layers + 1)

                    def layer_begins(layer: int, first: int = first, steps: int = steps) -> None:
                        report("compiling layers", (first + layer) / steps)

                    DecoderGraph(graph, spec, weights, plan.lowering, length, layer_begins).build()
                    writer.write(plan.file, graph.model(spec.model_type).SerializeToString())
            writer.record(_WEIGHT_FILE, weight_file.hexdigest(), weight_file.num_bytes)
            for name, data in tokenizer.items():
                writer.write(name, data)
            report("writing the manifest", 1.0)
            manifest = Manifest(
                architecture=spec.architecture,
                model_type=spec.model_type,
                target=target,
                precision=precision,
                kernels=kernels,
                num_parameters=num_parameters,
                vocab_size=spec.vocab_size,
                hidden_size=spec.hidden_size,
                num_layers=spec.num_layers,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=compiled_head_dim(spec),
                max_model_len=length,
                bos_token_id=tokens.bos,
                eos_token_ids=tokens.eos,
                pad_token_id=tokens.pad,
                kv_dtype="float32",
                graphs=tuple(GraphEntry(file=plan.file, min_rows=plan.min_rows) for plan in plans),
                files=writer.files,
                source=SourceEntry(fingerprint=checkpoint.fingerprint()),
                versions=_versions(),
            )
            writer.commit(manifest)
    return manifest


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
    if checkpoint.tokenizer_size > spec.vocab_size:
        raise CheckpointError(
            f"tokenizer.json has {checkpoint.tokenizer_size} tokens, but vocab_size is {spec.vocab_size}: "
            "it belongs to another model",
            field="tokenizer.json",
            path=checkpoint.folder / "tokenizer.json",
        )
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


def _versions() -> dict[str, str]:
    try:
        vorta = metadata.version("vorta")
    except metadata.PackageNotFoundError:
        vorta = "unknown"
    return {
        "compiler": COMPILER_VERSION,
        "ml_dtypes": ml_dtypes.__version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "vorta": vorta,
    }
