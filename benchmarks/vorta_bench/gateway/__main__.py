"""The command line of the gateway's comparisons."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from vorta_bench import gateway
from vorta_bench.gateway.balance import balance
from vorta_bench.gateway.client import client
from vorta_bench.gateway.codec import codec
from vorta_bench.gateway.rest import rest
from vorta_bench.gateway.servers import backend_server, in_process_server
from vorta_bench.gateway.streams import streams

__all__ = ["main"]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vorta_bench.gateway",
        description=gateway.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("codec", "rest", "client", "streams", "balance", "backend", "in-process"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.part in ("backend", "in-process"):
        (backend_server if arguments.part == "backend" else in_process_server)(arguments.port)
        return
    rows = {"codec": codec, "rest": rest, "client": client, "streams": streams, "balance": balance}[arguments.part](
        arguments
    )
    for row in rows:
        print(row)
    if arguments.out is not None:
        result = {
            "command": f"python -m vorta_bench.gateway {arguments.part}",
            "machine": platform.machine(),
            "python": platform.python_version(),
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
