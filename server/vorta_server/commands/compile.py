"""`vorta compile`: a checkpoint folder in, an artifact folder out, with a progress bar.

Imports the compiler only when it runs, so that listing the commands stays quick.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vorta.cli.output import print_json
from vorta.errors import FailedPrecondition, Internal, InvalidArgument, VortaError

if TYPE_CHECKING:
    from vorta_server.compiler.artifact import Manifest
    from vorta_server.compiler.tensorrt_engine import EngineBuilder

__all__ = ["add_compile"]


def add_compile(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `compile` to the command line."""
    parser = subparsers.add_parser(
        "compile",
        help="compile a checkpoint to an artifact",
        description="Quantise a Hugging Face checkpoint (of a language model, an embedding model or a reranker) and "
        "compile it to an artifact folder that `vorta serve` takes.",
    )
    parser.add_argument("checkpoint", help="a checkpoint folder, or the id of a pulled or installed model")
    parser.add_argument("out", type=Path, help="the artifact folder to write")
    parser.add_argument(
        "--target",
        default="cpu",
        help="cpu, or tensorrt: a graph of ONNX's own operators alone, for TensorRT and ONNX Runtime's providers on "
        "GPUs; default: %(default)s",
    )
    parser.add_argument(
        "--precision",
        default="int8",
        metavar="fp32|fp16|bf16|int8|int4",
        help="of the weights; on the cpu fp32, int8 and, of language models, int4; default: %(default)s",
    )
    parser.add_argument(
        "--kernels",
        choices=("auto", "vorta", "portable"),
        default="auto",
        help="operators of artifacts (a language model's fp32 excepted): Vorta's, built for the machine that serves, "
        "or ONNX Runtime's alone; auto takes Vorta's where they can be built; default: %(default)s",
    )
    parser.add_argument(
        "--block",
        type=int,
        metavar="N",
        help="weights that share a scale, 16 to 256; default: 32, of large models and encoders 128",
    )
    parser.add_argument("--max-model-len", type=int, metavar="N", help="tokens; default: what the checkpoint names")
    parser.add_argument(
        "--engines",
        type=Path,
        metavar="DIR",
        help="build TensorRT's engines into this folder too, where TensorRT is installed; those there are kept",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where pulled models are")
    parser.add_argument("--force", action="store_true", help="replace an artifact that is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_compile)


def run_compile(arguments: argparse.Namespace) -> int:
    """Compiles; returns the exit code. Raises VortaError for a checkpoint or argument at fault."""
    from vorta_kernels import cpu
    from vorta_server.commands.data_dir import find_data_dir
    from vorta_server.compiler.artifact import ArtifactError, StorageError
    from vorta_server.compiler.checkpoint import CheckpointError
    from vorta_server.compiler.compile import compile_checkpoint
    from vorta_server.registry.source import resolve_source

    builder = _engine_builder(arguments)
    kernels = arguments.kernels
    if kernels == "auto":
        kernels = "vorta" if cpu.is_available() else "portable"
    source = resolve_source(arguments.checkpoint, data_dir=find_data_dir(arguments.data_dir))
    start_s = time.monotonic()
    with ProgressBar(is_shown=sys.stderr.isatty() and not arguments.json) as bar:
        try:
            manifest = compile_checkpoint(
                source,
                arguments.out,
                target=arguments.target,
                precision=arguments.precision,
                kernels=kernels,
                block=arguments.block,
                max_model_len=arguments.max_model_len,
                progress=bar.report,
                overwrite=arguments.force,
            )
            engines = _build_engines(arguments, builder, bar) if builder is not None else []
        except CheckpointError as exc:
            raise _checkpoint_error(exc, source) from exc
        except ArtifactError as exc:
            raise InvalidArgument(f"{exc}; --force replaces it", field="out") from exc
        except StorageError as exc:
            raise Internal(str(exc), metadata={"path": arguments.out}) from exc
    num_bytes = sum(entry.bytes for entry in manifest.files.values())
    result: dict[str, Any] = {
        "artifact": str(arguments.out),
        "kind": manifest.kind,
        "architecture": manifest.architecture,
        "target": manifest.target,
        "precision": manifest.precision,
        "kernels": manifest.kernels,
        "max_model_len": manifest.max_model_len,
        "size_bytes": num_bytes,
        "elapsed_s": round(time.monotonic() - start_s, 3),
    }
    if manifest.kind == "embedding":
        result |= {"dimensions": manifest.hidden_size, "pooling": manifest.pooling, "normalize": manifest.normalize}
        result["prompts"] = sorted(manifest.prompts)
    elif manifest.kind == "rerank":
        result |= {"labels": manifest.num_labels, "uses_sigmoid": manifest.uses_sigmoid}
    if builder is not None:
        result["engines"] = [str(path) for path in engines]
    if arguments.json:
        print_json(result)
    else:
        sys.stdout.write(
            f"{arguments.out}: {manifest.architecture}, {_describe(manifest)}, {manifest.precision}, "
            f"{num_bytes / 1e6:.1f} MB, {result['elapsed_s']:.1f} s\n"
        )
    return 0


def _engine_builder(arguments: argparse.Namespace) -> EngineBuilder | None:
    """What builds engines, if they are asked for; looked for before a long compilation rather than after it."""
    if arguments.engines is None:
        return None
    if arguments.target != "tensorrt":
        raise InvalidArgument("--engines needs --target tensorrt", field="engines")
    from vorta_server.compiler.tensorrt_engine import find_tensorrt

    return find_tensorrt()


def _build_engines(arguments: argparse.Namespace, builder: EngineBuilder, bar: ProgressBar) -> list[Path]:
    from vorta_server.compiler.tensorrt_engine import build_engines

    bar.restart()
    try:
        return build_engines(arguments.out, arguments.engines, builder=builder, progress=bar.report)
    except OSError as exc:
        raise Internal(f"cannot write engines: {exc.strerror or exc}", metadata={"path": arguments.engines}) from exc


def _describe(manifest: Manifest) -> str:
    """What the artifact does, in a few words."""
    length = f"{manifest.max_model_len} tokens"
    if manifest.kind == "embedding":
        normalized = ", normalized" if manifest.normalize else ""
        return f"embedding of {manifest.hidden_size} numbers ({manifest.pooling}{normalized}), {length}"
    if manifest.kind == "rerank":
        return f"rerank with {manifest.num_labels} {'label' if manifest.num_labels == 1 else 'labels'}, {length}"
    return f"generation, {length}"


class ProgressBar:
    """A compilation's progress on stderr, from 0 to 100 %."""

    def __init__(self, *, is_shown: bool) -> None:
        self._bar: Any = tqdm(
            total=100,
            disable=not is_shown,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}",
            leave=False,
        )

    def report(self, stage: str, fraction: float) -> None:
        """Shows what is being done and the fraction done, 0 to 1."""
        self._bar.set_description_str(stage, refresh=False)
        self._bar.update(max(0.0, 100 * fraction - self._bar.n))

    def restart(self) -> None:
        """Begins another piece of work at 0 %."""
        self._bar.reset()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.close()


def _checkpoint_error(exc: Exception, source: Path) -> VortaError:
    """The compiler's refusal, as an error of the family; an argument's fault is told from the checkpoint's."""
    field: str | None = getattr(exc, "field", None)
    if field in ("target", "precision", "block", "max_model_len"):
        return InvalidArgument(str(exc), field=field)
    return FailedPrecondition(str(exc), reason="CHECKPOINT_INVALID", metadata={"path": source}, field=field)
