"""Engines against each other in process: decode at 1, 8 and 32 sequences, and prefill, on one model.

    python -m vorta_bench.engine --model half --peer-python PEERS/bin/python --work WORK --out results/engine_half.json

Every engine runs in a process of its own, in turn, on the same cores, several rounds; a figure is the median
of all its windows. Artifacts and GGUF files are written into WORK when they are not there. The peers live in
an environment of their own (`make peers`, requirements-peers.txt); --peer-python names its interpreter.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_bench.random_model import PRESETS, write_random_checkpoint

__all__ = ["Contender", "compare", "table"]

_ROOT = Path(__file__).resolve().parents[1]
_STEPS = {"half": "1=24,8=12,32=6", "mini": "1=128,8=64,32=32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An engine with its model's file, and the interpreter that has its packages."""

    name: str
    engine: str
    python: str
    model: Path


def compare(contenders: Sequence[Contender], arguments: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Measures the contenders in turn, `rounds` times; one result each, with the rates of all rounds.

    A contender that fails is reported with its error and left out of the later rounds.
    """
    results: dict[str, dict[str, Any]] = {}
    for index in range(rounds):
        for contender in contenders:
            known = results.get(contender.name)
            if known is not None and "error" in known:
                continue
            measured = _measure(contender, arguments)
            print(f"round {index + 1}: {contender.name}: {_brief(measured)}", file=sys.stderr, flush=True)
            if known is None or "error" in measured:
                results[contender.name] = {"name": contender.name, **measured}
            else:
                for cell, rates in measured["tokens_per_s"].items():
                    known["tokens_per_s"][cell] += rates
                known["peak_memory_bytes"] = max(known["peak_memory_bytes"], measured["peak_memory_bytes"])
    return list(results.values())


def table(results: Sequence[dict[str, Any]]) -> str:
    """A markdown table of medians, with the ratio of each of our results to the best of the peers' below."""
    sound = [result for result in results if "error" not in result]
    cells = list(sound[0]["tokens_per_s"])
    medians = {
        result["name"]: {cell: statistics.median(result["tokens_per_s"][cell]) for cell in cells} for result in sound
    }
    lines = [
        f"| tokens/s | {' | '.join(cells)} | peak memory, MB |",
        f"|---|{'---|' * (len(cells) + 1)}",
    ]
    for result in sound:
        figures = " | ".join(f"{medians[result['name']][cell]:.4g}" for cell in cells)
        lines.append(f"| {result['name']} | {figures} | {result['peak_memory_bytes'] / 1e6:.0f} |")
    ours = [result["name"] for result in sound if result["name"].startswith("vorta")]
    peers = [result["name"] for result in sound if result["name"] not in ours]
    for name in ours if peers else ():
        ratios = " | ".join(f"{medians[name][cell] / max(medians[peer][cell] for peer in peers):.2f}" for cell in cells)
        lines.append(f"| **{name} / best peer** | {ratios} | |")
    lines += [f"\n{result['name']} failed: {result['error']}" for result in results if "error" in result]
    return "\n".join(lines)


def _measure(contender: Contender, arguments: Sequence[str]) -> dict[str, Any]:
    command = [contender.python, "-m", "vorta_bench.peers", contender.engine, str(contender.model), *arguments]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "it took longer than ten minutes"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _brief(measured: dict[str, Any]) -> str:
    if "error" in measured:
        return str(measured["error"])
    return ", ".join(f"{cell} {max(rates):.4g}" for cell, rates in measured["tokens_per_s"].items())


def _contenders(checkpoint: Path, work: Path, precisions: Sequence[str], peer_python: str | None) -> list[Contender]:
    from vorta_kernels import cpu
    from vorta_server.compiler.cache import artifact_for
    from vorta_server.compiler.plan import Kernels

    kernels: Kernels = "vorta" if cpu.is_available() else "portable"
    # As it is compiled by default, and with the blocks that the peers' 4-bit weights have.
    blocks: dict[str, int | None] = {"": None} if checkpoint.name == "mini" else {"": None, " block 32": 32}
    contenders = [
        Contender(
            name=f"vorta {precision}{name}",
            engine="vorta",
            python=sys.executable,
            model=artifact_for(
                checkpoint, precision=precision, kernels=kernels, block=block, cache_dir=work / "artifacts"
            ),
        )
        for precision in precisions
        for name, block in blocks.items()
    ]
    if peer_python is None:
        return contenders
    for file_type in ("q4_0", "q8_0"):
        file = work / f"{checkpoint.name}-{file_type}.gguf"
        if not file.exists():
            writer = ["-m", "vorta_bench.peers.gguf_file", str(checkpoint), str(file), "--type", file_type]
            environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
            subprocess.run([peer_python, *writer], env=environment, check=True, stdout=subprocess.DEVNULL)
        contenders.append(Contender(name=f"llama.cpp {file_type}", engine="llama", python=peer_python, model=file))
    contenders.append(
        Contender(
            name="OpenVINO GenAI q4_0",
            engine="openvino",
            python=peer_python,
            model=work / f"{checkpoint.name}-q4_0.gguf",
        )
    )
    folder = work / f"{checkpoint.name}-genai-int4"
    if not folder.exists():
        builder = [peer_python, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
        command = [*builder, "-i", str(checkpoint), "-o", str(folder), "-c", str(work / "genai-cache")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:  # measured without it, and the table says so
            print(f"onnxruntime-genai's builder failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    contenders.append(Contender(name="onnxruntime-genai int4", engine="genai", python=peer_python, model=folder))
    return contenders


def _page(report: dict[str, Any]) -> str:
    """The table with what it depends on."""
    machine = report["machine"]
    versions = {result["name"]: f"{result['version']}" for result in report["results"] if "error" not in result}
    return (
        f"{table(report['results'])}\n\n"
        f"`{report['command']}`, {report['time']}; {machine['cpus']} CPUs, {machine['processor']}; "
        f"load {machine['load_average'][0]:.1f}, stolen {machine['stolen']:.1%}; "
        f"{', '.join(f'{name}: {version}' for name, version in versions.items())}\n"
    )


def _machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, and what else ran."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def _cpu_ticks() -> tuple[int, int]:
    """Ticks stolen by the host, and all ticks, since the system started."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare engines in process.")
    parser.add_argument("--model", required=True, help=f"a checkpoint's folder, or {', '.join(PRESETS)}")
    parser.add_argument("--work", type=Path, required=True, help="folder for models; may be kept for the next run")
    parser.add_argument("--precision", action="append", choices=["int4", "int8", "fp32"], help="default int4")
    parser.add_argument("--peer-python", help="interpreter of the peers' environment; without it no peers")
    parser.add_argument("--only", action="append", help="contenders whose name contains this; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=2, help="windows of each cell in a round")
    parser.add_argument("--steps", help="sequences=steps of a window, comma separated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write; a table goes beside it, as .md")
    arguments = parser.parse_args()
    if arguments.model in PRESETS:
        checkpoint = arguments.work / arguments.model
        if not checkpoint.exists():
            write_random_checkpoint(checkpoint, arguments.model)
    else:
        checkpoint = Path(arguments.model)
    config = json.loads((checkpoint / "config.json").read_text())
    contenders = _contenders(checkpoint, arguments.work, arguments.precision or ["int4"], arguments.peer_python)
    if arguments.only:
        contenders = [item for item in contenders if any(text in item.name for text in arguments.only)]
    steps = arguments.steps or _STEPS["half" if config["hidden_size"] > 512 else "mini"]
    settings = ["--vocab-size", str(config["vocab_size"]), "--steps", steps, "--threads", str(arguments.threads)]
    settings += ["--windows", str(arguments.windows)]
    stolen, total = _cpu_ticks()
    begin = datetime.datetime.now(datetime.UTC)
    results = compare(contenders, settings, arguments.rounds)
    stolen_after, total_after = _cpu_ticks()
    report = {
        "command": " ".join(
            ["python -m vorta_bench.engine --model", checkpoint.name, "--rounds", str(arguments.rounds)]
        ),
        "time": begin.isoformat(timespec="seconds"),
        "machine": {**_machine(), "stolen": round((stolen_after - stolen) / max(1, total_after - total), 4)},
        "model": {name: config.get(name) for name in PRESETS["half"]},
        "settings": settings,
        "results": results,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(_page(report))
    print(table(results))


if __name__ == "__main__":
    main()
