"""Imports go one way; ARCHITECTURE.md says which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "vorta": ROOT / "clients/python/vorta",
    "vorta_server": ROOT / "server/vorta_server",
    "vorta_gateway": ROOT / "gateway/vorta_gateway",
    "vorta_kernels": ROOT / "kernels/vorta_kernels",
    "vorta_bench": ROOT / "benchmarks/vorta_bench",
}
WIRE = {"grpc", "google", "grpc_reflection", "grpc_health", "grpc_channelz", "vorta.v1"}

# package -> what it must not import
FORBIDDEN: dict[str, set[str]] = {
    "vorta": {"vorta_server", "vorta_gateway", "vorta_bench", "numpy", "onnxruntime", "pydantic", "msgspec", "torch"},
    "vorta_kernels": WIRE | {"vorta", "vorta_server", "vorta_bench", "onnxruntime", "transformers"},
    "vorta_gateway": {"vorta_server", "vorta_kernels", "vorta_bench", "onnxruntime", "torch", "msgspec"},
    "vorta_gateway.json": {
        "grpc",
        *(f"vorta_gateway.{name}" for name in ("rest", "openai", "app", "http", "upstream")),
    },
    "vorta_server": {"vorta_bench", "torch", "transformers"},
    "vorta_server.engine": WIRE
    | {
        "llguidance",
        "onnxruntime",
        "pydantic",
        "tokenizers",
        "vorta_kernels",
        *(f"vorta_server.{name}" for name in ("front", "workers", "runners", "compiler", "tokenization", "registry")),
    },
    "vorta_server.tokenization": WIRE
    | {"onnxruntime", *(f"vorta_server.{name}" for name in ("front", "workers", "runners", "engine", "compiler"))},
    "vorta_server.runners": WIRE | {f"vorta_server.{name}" for name in ("front", "workers", "tokenization")},
    "vorta_server.compiler": WIRE
    | {
        "onnxruntime",
        "vorta_kernels",
        *(f"vorta_server.{name}" for name in ("front", "workers", "runners", "engine", "tokenization")),
    },
    "vorta_server.embedding": WIRE
    | {
        "onnxruntime",
        "onnx",
        "msgspec",
        "tokenizers",
        "vorta_kernels",
        *(f"vorta_server.{name}" for name in ("front", "workers", "runners", "engine", "tokenization", "compiler")),
        *(f"vorta_server.{name}" for name in ("registry", "observability", "vectors", "commands")),
    },
    # The Weaviate client's errors are grpc's.
    "vorta_server.vectors": (WIRE - {"grpc"})
    | {"onnxruntime", "onnx", "tokenizers"}
    | {f"vorta_server.{name}" for name in ("front", "workers", "runners", "engine", "tokenization", "compiler")}
    | {f"vorta_server.{name}" for name in ("registry", "observability", "embedding", "commands")},
    "vorta_server.workers": WIRE | {"vorta_server.front"},
    "vorta_server.registry": WIRE | {"onnxruntime", "vorta_server.front", "vorta_server.engine.engine"},
    "vorta_server.front": {"llguidance", "numpy", "onnx", "onnxruntime", "tokenizers"}
    | {"vorta_server.runners", "vorta_server.compiler"},
}

# What alone may import it after all.
ALLOWED: dict[str, set[str]] = {
    "torch": {"vorta_server.runners.cuda", "vorta_server.workers.cuda"},
    "vorta_kernels": {"vorta_gateway.json.native"},  # its builder of libraries
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    top, _, rest = package.partition(".")
    folder = SOURCES[top].joinpath(*rest.split(".")) if rest else SOURCES[top]
    for path in folder.rglob("*.py"):
        if "v1" not in path.parts:
            yield ".".join([top, *path.relative_to(SOURCES[top]).with_suffix("").parts]), path


def imported(path: Path) -> set[str]:
    """Every absolute name that a module imports, for type checking and inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_nothing_it_must_not(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package)
        for name in sorted(imported(path))
        for forbidden in FORBIDDEN[package]
        if (name == forbidden or name.startswith(forbidden + "."))
        and not module.startswith(tuple(ALLOWED.get(forbidden, ())) or "-")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vorta", ["numpy", "pydantic", "onnxruntime", "msgspec", "vorta_server"]),
        ("vorta_server.front.server", ["numpy", "llguidance", "onnxruntime", "onnx", "torch"]),
        ("vorta_server.workers.generation", ["grpc", "onnx", "torch", "google.protobuf"]),
        ("vorta_server.runners.onnx", ["grpc", "onnx", "torch", "google.protobuf"]),
        ("vorta_kernels.sampling", ["torch", "triton"]),
    ],
)
def test_import_is_light(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
