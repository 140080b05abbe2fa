"""The `vorta gateway` command: REST, gRPC-Web and docs before any annotated gRPC server.

Imports the gateway only when it runs, so that the command line stays quick.
"""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_gateway", "run_gateway"]


def add_gateway(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `gateway` to the command line; its `run` default takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "gateway",
        help="serve REST and gRPC-Web before a gRPC server",
        description="Serve REST by google.api.http rules, gRPC-Web and docs before any gRPC server with reflection. "
        "Before Vorta's own, the OpenAI and Ollama APIs, the WebSocket and the console too.",
    )
    add = parser.add_argument
    add("--upstream", required=True, metavar="HOST:PORT[,…]|dns:///NAME:PORT", help="the server, or its replicas")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8080, metavar="PORT", help="HTTP port, 0 for any free one (default: 8080)")
    add(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="an origin whose pages may call; * stands for any text within it (default: http://localhost:*); may be "
        "repeated",
    )
    add("--max-body-bytes", type=int, default=16 * 1024 * 1024, metavar="N", help="(default: 16 MiB)")
    add("--camel-case", action="store_true", help="reply with lowerCamelCase names, as proto3 JSON has them")
    add("--always-print", action="store_true", help="reply with fields at their defaults too")
    add("--method-override", action="store_true", help="obey X-HTTP-Method-Override")
    add("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO", help="(default: INFO)")
    parser.set_defaults(run=run_gateway)


def run_gateway(arguments: argparse.Namespace) -> int:
    """Serves until told to stop. Returns 0 then, and 1 when it cannot start."""
    import asyncio
    import logging

    import uvloop

    from vorta.errors import VortaError
    from vorta_gateway.rest.template import TemplateError
    from vorta_gateway.standalone import StandaloneConfig, serve

    logging.basicConfig(
        level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    config = StandaloneConfig(
        upstream=arguments.upstream,
        host=arguments.host,
        port=arguments.port,
        cors_origins=tuple(arguments.cors_origin or ("http://localhost:*", "http://127.0.0.1:*")),
        max_body_bytes=arguments.max_body_bytes,
        camel_case=arguments.camel_case,
        always_print=arguments.always_print,
        method_override=arguments.method_override,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config))
    except (VortaError, TemplateError) as error:
        sys.stderr.write(f"vorta gateway: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
