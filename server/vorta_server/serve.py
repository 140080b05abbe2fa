"""The `vorta serve` command. Imports the server only when it runs, so that the command line stays quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["add_serve", "main", "run_serve"]


def add_serve(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `serve` to the command line; its `run` default takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "serve",
        help="serve models over gRPC",
        description="Serve models over gRPC, with metrics and health on an HTTP port. Every option can also be "
        "set in the TOML file or as an environment variable VORTA_<SECTION>__<FIELD>.",
    )
    _add_arguments(parser)
    parser.set_defaults(run=run_serve)


def main(argv: Sequence[str] | None = None) -> int:
    """The command by itself: `python -m vorta_server.serve`."""
    parser = argparse.ArgumentParser(prog="vorta serve", description="Serve models over gRPC.")
    _add_arguments(parser)
    return run_serve(parser.parse_args(argv))


def run_serve(arguments: argparse.Namespace) -> int:
    """Serves until told to stop. Returns 0 then, and 1 when the settings are wrong or a port is taken."""
    import asyncio
    import gc
    import os

    # gRPC would prepare for forks that use gRPC in the child, and warn of each worker's start.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    import uvloop

    from vorta.errors import VortaError
    from vorta_server.app import App
    from vorta_server.observability.log import set_up_logging
    from vorta_server.settings import load_settings

    async def serve() -> None:
        app = App(settings)
        # What was imported and built so far lives until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        await app.run()

    try:
        settings = load_settings(_flags(arguments), config=arguments.config)
        set_up_logging(level=settings.log.level, format=settings.log.format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except VortaError as error:
        field = f" ({error.field})" if error.field and error.field not in error.message else ""
        sys.stderr.write(f"vorta serve: {error.message}{field}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        action="append",
        metavar="ID|PATH|ID=PATH",
        help="a model to serve: an artifact or checkpoint folder, or a pulled hub id; may be repeated, the first of "
        "each kind is the default (default: vorta-mini and all-MiniLM-L6-v2)",
    )
    add("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    add("--grpc-port", type=int, metavar="PORT", help="gRPC port, 0 for any free one (default: 50051)")
    add("--http-port", type=int, metavar="PORT", help="HTTP port, 0 for any free one (default: 8000)")
    add("--data-dir", type=Path, metavar="DIR", help="pulled models, compiled artifacts, vector collections")
    add(
        "--precision",
        choices=("fp32", "fp16", "bf16", "fp8", "int8", "int4"),
        help="of checkpoints; fp16, bf16 and fp8 are for GPUs (default: int8, bf16 with --runner cuda)",
    )
    add("--runner", choices=("onnx", "cuda", "fake"), help="what computes generation models (default: onnx)")
    add("--device", metavar="cuda[:N]", help="of the cuda runner (default: cuda)")
    add("--kv-dtype", choices=("auto", "fp8"), help="of the cuda runner's KV cache (default: auto, as activations)")
    add(
        "--providers",
        metavar="cpu|cuda|tensorrt[,...]",
        help="ONNX Runtime's providers by preference; those on a GPU need onnxruntime-gpu, and run what "
        "vorta compile --target tensorrt makes (default: cpu)",
    )
    add(
        "--vector-backend",
        metavar="faiss|none|URL",
        help="where vectors are: embedded in the data folder, nowhere, or weaviate://HOST[:PORT] (default: faiss)",
    )
    add("--threads", type=int, metavar="N", help="compute threads per worker (default: one per core)")
    add("--max-model-len", type=int, metavar="TOKENS", help="context length (default: the model's own)")
    add("--drain-grace", type=float, metavar="SECONDS", help="for running requests at the end (default: 300)")
    add("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="(default: INFO)")
    add("--log-format", choices=("text", "json"), help="(default: text)")
    add("--config", type=Path, metavar="FILE", help="settings as a TOML file")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="any other setting; may be repeated",
    )


_FLAG_FIELDS = {
    "host": "host",
    "grpc_port": "grpc.port",
    "http_port": "http.port",
    "data_dir": "data_dir",
    "precision": "precision",
    "runner": "worker.runner",
    "device": "worker.device",
    "kv_dtype": "worker.kv_dtype",
    "providers": "worker.providers",
    "vector_backend": "vector.backend",
    "threads": "worker.threads",
    "max_model_len": "worker.max_model_len",
    "drain_grace": "drain.grace_s",
    "log_level": "log.level",
    "log_format": "log.format",
}


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags given, as nested settings. Raises FailedPrecondition for one that is malformed."""
    from vorta.errors import FailedPrecondition
    from vorta_server.registry.source import split_model_flag

    values: dict[str, Any] = {}
    for name, path in _FLAG_FIELDS.items():
        value = getattr(arguments, name)
        if value is not None:
            _put(values, path, value)
    for item in arguments.set:
        path, separator, value = item.partition("=")
        if not separator or not path:
            raise FailedPrecondition(
                f"--set {item}: not of the form SECTION.FIELD=VALUE",
                reason="SETTINGS_INVALID",
                field=path or "set",
            )
        _put(values, path, value)
    if arguments.model:
        try:
            values["models"] = dict(split_model_flag(flag) for flag in arguments.model)
        except ValueError as error:
            raise FailedPrecondition(f"--model: {error}", reason="SETTINGS_INVALID", field="models") from None
    return values


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, field = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[field] = value


if __name__ == "__main__":
    sys.exit(main())
