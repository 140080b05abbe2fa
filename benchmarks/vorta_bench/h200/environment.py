"""What the figures depend on: the card and its settings, the host, versions, and the packages that are missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts", "source_tree_bytes"]

ROOT = Path(__file__).resolve().parents[3]
MAX_TREE_BYTES = 64 << 20
"""Of the source tree: what a run on another host carries."""
PACKAGES = ("torch", "triton", "transformers", "vllm", "numpy", "grpcio", "protobuf", "onnxruntime", "safetensors")
SERVE_MODULES = (
    *("grpc", "grpc_health", "grpc_reflection", "grpc_channelz", "google.protobuf", "google.rpc", "msgspec", "zmq"),
    *("uvloop", "numpy", "tokenizers", "safetensors", "jinja2", "pydantic_settings", "annotated_types", "orjson"),
    *("httptools", "uvicorn", "wsproto", "prometheus_client", "onnx", "onnxruntime", "ml_dtypes", "tqdm"),
)
"""What `vorta serve` imports."""
_SMI_FIELDS = (
    *("name", "driver_version", "vbios_version", "pstate", "temperature.gpu", "power.draw", "power.limit"),
    *("power.default_limit", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "ecc.mode.current"),
    *("mig.mode.current", "persistence_mode", "compute_mode", "memory.total", "memory.used", "pcie.link.gen.max"),
)


def parts(settings: Settings) -> Sequence[str]:
    """One process."""
    return ["environment"]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """Quick looks, none of which changes anything."""
    return [
        Cell("host", _host, 5),
        Cell("versions", _versions, 10),
        Cell("serve packages", _serve_packages, 20),
        Cell("source tree", _source_tree, 10),
        Cell("card", lambda: _card(settings), 30),
        Cell("nvidia-smi", lambda: _smi(settings), 20),
        Cell("tools", _tools, 30),
    ]


def _host() -> Figure:
    model, cpuinfo = "unknown", Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "disk_free_bytes": shutil.disk_usage(".").free,
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
    }


def _versions() -> Figure:
    figure: Figure = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            figure[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            figure[name] = "not installed"
    return figure


def _serve_packages() -> Figure:
    missing = []
    for name in SERVE_MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return {"missing": missing, "num_missing": len(missing)}


def source_tree_bytes(root: Path = ROOT) -> int:
    """Bytes of the files that git tracks under a root. Raises Skip without git or a repository."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skip("git does not know this tree") from error
    files = (root / os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
    return sum(file.lstat().st_size for file in files if os.path.lexists(file))


def _source_tree() -> Figure:
    size = source_tree_bytes()
    return {"bytes": size, "most_bytes": MAX_TREE_BYTES, "fits": size < MAX_TREE_BYTES}


def _card(settings: Settings) -> Figure:
    if settings.is_dry:
        raise Skip("a dry run on a CPU")
    import torch

    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": total,
        "memory_free_bytes": free,
        "num_visible": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
    }


def _smi(settings: Settings) -> Figure:
    if settings.is_dry:
        raise Skip("a dry run on a CPU")
    if shutil.which("nvidia-smi") is None:
        raise Skip("nvidia-smi is not there")
    figure: Figure = {}
    # One by one: a field that this driver does not know spoils the whole query.
    for field in _SMI_FIELDS:
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "-i", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        figure[field] = done.stdout.strip() if done.returncode == 0 else "unknown"
    return figure


def _tools() -> Figure:
    figure: dict[str, Any] = {}
    for name, flag in (("nvcc", "--version"), ("g++", "--version"), ("compute-sanitizer", "--version"), ("ncu", "-v")):
        path = shutil.which(name)
        if path is None:
            figure[name] = "not there"
            continue
        done = subprocess.run([path, flag], capture_output=True, text=True, check=False, timeout=20)
        lines = (done.stdout.strip() or done.stderr.strip() or "no version").splitlines()
        figure[name] = next((line for line in lines if re.search(r"\d\.\d", line)), lines[0])
    return figure
