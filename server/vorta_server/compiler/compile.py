"""The compiler's entry: checkpoint folder in, artifact folder out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx

from vorta.errors import FailedPrecondition
from vorta_server.compiler.artifact import ArtifactWriter, Manifest, Opener
from vorta_server.compiler.checkpoint import MODULES_FILE, Checkpoint, CheckpointError
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.decoder_model import DecoderModel, default_block
from vorta_server.compiler.encoder_model import EncoderModel
from vorta_server.compiler.family import is_encoder
from vorta_server.compiler.graph import WeightFile
from vorta_server.compiler.plan import Kernels, precisions_of

__all__ = ["COMPILER_VERSION", "TARGETS", "Progress", "check_request", "compile_checkpoint", "default_block"]

# Raised whenever the same checkpoint would compile to another artifact, so that caches compile anew.
COMPILER_VERSION = "8"

TARGETS = ("cpu", "tensorrt")
_WEIGHT_FILE = "weights.bin"
_BLOCKS = (16, 32, 64, 128, 256)

Progress = Callable[[str, float], None]


def check_request(target: str, precision: str) -> None:
    """Refuses a target or precision that cannot be compiled.

    Raises FailedPrecondition for the cuda runner's, which needs no compiling, CheckpointError for any other value.
    """
    if target == "cuda":
        raise FailedPrecondition(
            "target cuda needs no compiling: vorta serve --runner cuda takes the checkpoint as it is",
            reason="INVALID_FIELD",
            field="target",
        )
    if target not in TARGETS:
        raise CheckpointError(f"target {target!r} is unknown; available: {', '.join(TARGETS)}", field="target")
    available = precisions_of(target, is_encoder=False)
    if precision not in available:
        raise CheckpointError(
            f"precision {precision!r} is not available for target {target}; available: {', '.join(available)}",
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

    A text encoder (an embedding model or a reranker) is told from a decoder by its architecture, or by the modules.json
    that sentence-transformers wrote beside it.

    Args:
        target: "cpu", or "tensorrt" for a graph of ONNX's own operators alone, which engines on GPUs take.
        precision: "fp32", "int8" or (not of an encoder) "int4"; see quantise.py and linear.py for what they mean. For
            "tensorrt" those and "fp16" and "bf16", of every model; see opset_product.py.
        kernels: "vorta" for graphs that run faster and need `vorta_kernels.cpu`; a decoder's fp32, and what is not for
            the cpu, is always portable.
        block: weights of int8 and int4 that share a scale: 16, 32, 64, 128 or 256; default see `default_block`.
        max_model_len: positions of the artifact, prompt and output; default what the checkpoint names.
        progress: called with what is being done and the fraction done, 0 to 1.
        overwrite: replace an artifact that is at `out`.
        opener: opens a new file for writing in binary; a seam for tests.

    Raises:
        CheckpointError: the checkpoint or an argument is at fault; `field` names what.
        vorta.errors.FailedPrecondition: the target is "cuda", which needs no compiling.
        ArtifactError: `out` is taken.
        StorageError: the artifact could not be written (a full disk); nothing is left behind.
    """
    report = progress or (lambda _stage, _fraction: None)
    check_request(target, precision)
    if block is not None and block not in _BLOCKS:
        raise CheckpointError(f"block is {block}; available: {', '.join(map(str, _BLOCKS))}", field="block")
    report("reading the checkpoint", 0.0)
    with Checkpoint(source) as checkpoint:
        config = ConfigReader(checkpoint.config, source / "config.json")
        has_modules = (source / MODULES_FILE).is_file()
        kind = EncoderModel if is_encoder(config, has_modules=has_modules) else DecoderModel
        model = kind(
            checkpoint,
            config,
            target=target,
            precision=precision,
            kernels=kernels if target == "cpu" else "portable",
            block=block,
            max_model_len=max_model_len,
        )
        tokenizer = checkpoint.tokenizer_contents()
        with ArtifactWriter(out, overwrite=overwrite, opener=opener) as writer:
            with writer.create(_WEIGHT_FILE) as stream:
                weight_file = WeightFile(stream, _WEIGHT_FILE)
                model.write_graphs(writer, weight_file, lambda fraction: report("compiling layers", fraction))
            writer.record(_WEIGHT_FILE, weight_file.hexdigest(), weight_file.num_bytes)
            for name, data in tokenizer.items():
                writer.write(name, data)
            report("writing the manifest", 1.0)
            manifest = model.manifest(writer.files, checkpoint.fingerprint(), _versions())
            writer.commit(manifest)
    return manifest


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
