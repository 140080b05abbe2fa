"""Generates the Python stubs from protos/ into clients/python/vorta/v1, and the set of all descriptors.

`python scripts/generate.py` writes them; `--check` fails when the committed stubs differ from what the protos give.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import google.rpc
import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "clients" / "python"
CONTRACT = ROOT / "gateway" / "vorta_gateway" / "contract.binpb"


def generate(out: Path) -> list[Path]:
    """Writes the stubs below `out` and returns their paths, relative to `out`."""
    sources = sorted(PROTOS.glob("vorta/v1/*.proto"))
    include = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{PROTOS / 'third_party'}",
            f"-I{include}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *[str(source.relative_to(PROTOS)) for source in sources],
        ]
    )
    if code != 0:
        raise SystemExit(f"protoc failed with exit code {code}")
    for path in (out / "vorta" / "v1").glob("*_pb2_grpc.py"):
        if "class " not in path.read_text().replace("class without", ""):
            path.unlink()  # a file without a service
    return sorted(path.relative_to(out) for path in (out / "vorta" / "v1").iterdir() if path.is_file())


def descriptor_set(file: Path) -> None:
    """Writes the services' descriptors, all that they import, and the protos' comments."""
    include = Path(grpc_tools.__file__).parent / "_proto"
    rpc = Path(next(iter(google.rpc.__path__))).parents[1]
    sources = [str(source.relative_to(PROTOS)) for source in sorted(PROTOS.glob("vorta/v1/*.proto"))]
    includes = [f"-I{folder}" for folder in (PROTOS, PROTOS / "third_party", include, rpc)]
    options = [f"--descriptor_set_out={file}", "--include_imports", "--include_source_info"]
    # Envoy loses error details whose types its set does not have.
    if protoc.main(["protoc", *includes, *options, *sources, "google/rpc/error_details.proto"]) != 0:
        raise SystemExit("protoc failed")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed stubs are not current")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        names = generate(out)
        contract = out / CONTRACT.name
        descriptor_set(contract)
        if arguments.check:
            committed = {
                path.relative_to(STUBS) for path in (STUBS / "vorta" / "v1").glob("*_pb2*.py*") if path.is_file()
            }
            stale = [
                name
                for name in sorted(committed | set(names))
                if name not in committed
                or name not in names
                or not filecmp.cmp(out / name, STUBS / name, shallow=False)
            ]
            if not CONTRACT.exists() or contract.read_bytes() != CONTRACT.read_bytes():
                stale.append(CONTRACT.relative_to(ROOT))
            if stale:
                print("stubs are not current, run `make generate`:", *stale, sep="\n  ", file=sys.stderr)
                raise SystemExit(1)
            print(f"{len(names)} stubs are current")
            return
        target = STUBS / "vorta" / "v1"
        target.mkdir(parents=True, exist_ok=True)
        for stale_path in target.glob("*_pb2*.py*"):
            stale_path.unlink()
        for name in names:
            (STUBS / name).write_bytes((out / name).read_bytes())
        CONTRACT.write_bytes(contract.read_bytes())
        print(f"wrote {len(names)} stubs to {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
