"""The GPU run: `python -m vorta_bench.h200 [STAGE ...] --out DIR`.

    python -m vorta_bench.h200 --out results                     # every stage, in order
    python -m vorta_bench.h200 engine --out results --resume     # one, from where it was cut
    python -m vorta_bench.h200 --device cpu --out dry            # no GPU: everything tiny, to test the run itself

Each stage writes DIR/STAGE.json after every figure and DIR/STAGE.log, and ends within --limit-s: what there was no time
for is named in the file, and --resume measures it. A stage runs in processes of its own, cut into parts; one that dies
or hangs costs its own cell. Exit status: 0 when every stage asked for ran, whatever it found; 1 when one has failures;
2 for wrong arguments or without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from vorta_bench.h200.floor import PRECISIONS
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import DRY_RUN, Recording
from vorta_bench.h200.stage import NO_TIME, Settings, StageModule, run_cells

STAGES = (
    *("environment", "build", "parity", "sanitizer", "ceilings", "kernels"),
    *("engine", "baselines", "wire", "providers", "engines"),
)
"""In the order in which they run: later ones read the ceilings of earlier ones."""
_COMMAND = (sys.executable, "-m", "vorta_bench.h200")
"""What starts a part's process; tests put another in its place."""
_MOST_DEATHS = 8
"""Of a part's processes in one run; then the rest of the part is given up."""
_REPORT_BYTES = 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.stages if name not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}: one of {', '.join(STAGES)}")
    models = arguments.models or (["tiny"] if arguments.device == "cpu" else ["llama-2-7b", "llama-3.1-8b"])
    settings = Settings(
        device=arguments.device,
        out=arguments.out,
        work=arguments.work or Path(tempfile.gettempdir()) / "vorta-h200",
        models=tuple(models),
        precisions=tuple(arguments.precisions),
        until_s=arguments.until or time.time() + arguments.limit_s,
        is_fake=arguments.device == "cpu" and not arguments.reference,
    )
    if arguments.part is not None:
        _run_part(settings, arguments.stages[0], arguments.part)
        return 0
    # A signal ends the parts too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.device == "cuda" and not _has_cuda():
        sys.stderr.write("vorta_bench.h200: torch finds no CUDA device; --device cpu tests the run without one\n")
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    has_failures = False
    for stage in arguments.stages or STAGES:
        for index in range(arguments.rounds):
            recording = _run_stage(stage, arguments, settings, resume=arguments.resume or index > 0)
            if NO_TIME not in recording.skipped.values():
                break
        has_failures |= bool(recording.failures)
    return 1 if has_failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vorta_bench.h200", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help=f"default: all of {', '.join(STAGES)}")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the JSON files")
    add("--work", type=Path, metavar="DIR", help="folder of checkpoints; may be kept (default: a temporary one)")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run with tiny sizes (default: cuda)")
    add(
        "--reference",
        action="store_true",
        help="on a CPU: Vorta's runner over the kernels' references, not the fake one",
    )
    add("--limit-s", type=float, default=540, metavar="S", help="seconds of a stage (default: %(default)s)")
    add("--rounds", type=int, default=1, metavar="N", help="a stage whose time is over is resumed up to N - 1 times")
    add("--resume", action="store_true", help="keep what is in the JSON files, and measure only what is not")
    add("--only", action="append", metavar="TEXT", help="parts of a stage whose name contains this; may be repeated")
    add("--models", nargs="+", choices=list(SHAPES), help="default: llama-2-7b llama-3.1-8b; on a CPU tiny")
    add("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS), help="default: all")
    add("--part", help=argparse.SUPPRESS)
    add("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _has_cuda() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


def _module(stage: str) -> StageModule:
    return cast(StageModule, importlib.import_module(f"vorta_bench.h200.{stage}"))


def _run_part(settings: Settings, stage: str, part: str) -> None:
    """In a process of its own."""
    recording = Recording(settings.out / f"{stage}.json", stage)
    run_cells(_module(stage).cells(settings, part), recording, settings.until_s)


def _run_stage(stage: str, arguments: argparse.Namespace, settings: Settings, *, resume: bool) -> Recording:
    path = settings.out / f"{stage}.json"
    if not resume:
        path.unlink(missing_ok=True)
    recording = Recording(path, stage)
    if resume:
        recording.forget_failures()
    device = DRY_RUN if settings.is_dry else _card_name()
    recording.describe(device=device, command=_command_line(stage, arguments))
    until_s = time.time() + arguments.limit_s
    print(f"== {stage}, at most {arguments.limit_s:.0f} s ==", flush=True)
    log = settings.out / f"{stage}.log"
    for part in _module(stage).parts(settings):
        if arguments.only and not any(text in part for text in arguments.only):
            continue
        for _ in range(_MOST_DEATHS):
            if time.time() > until_s - 5:
                Recording(path, stage).skip(part, NO_TIME)
                break
            if _run_process(settings, stage, part, until_s, log, Recording(path, stage)):
                break
    recording = Recording(path, stage)
    print(
        f"== {stage}: {len(recording.figures)} figures, {len(recording.failures)} failures, "
        f"{len(recording.skipped)} skipped ==",
        flush=True,
    )
    return recording


def _command_line(stage: str, arguments: argparse.Namespace) -> str:
    """What measures a stage again, without folders of this machine."""
    parts = ["python -m vorta_bench.h200", stage, f"--device {arguments.device}", f"--limit-s {arguments.limit_s:g}"]
    parts += [f"--only {text}" for text in arguments.only or ()]
    parts += [f"--models {' '.join(arguments.models)}"] if arguments.models else []
    parts += [f"--precisions {' '.join(arguments.precisions)}"]
    parts += ["--reference"] if arguments.reference else []
    return " ".join(parts)


def _run_process(settings: Settings, stage: str, part: str, until_s: float, log: Path, recording: Recording) -> bool:
    """Runs a part in a process. Returns False where it died in a cell and the part's others may still be measured."""
    recording.skipped.pop(part, None)
    command = [*_COMMAND, stage, "--part", part, "--until", str(until_s)]
    command += ["--device", settings.device, "--out", str(settings.out), "--work", str(settings.work)]
    command += ["--reference"] if settings.is_dry and not settings.is_fake else []
    command += ["--models", *settings.models, "--precisions", *settings.precisions]
    settings.work.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        begin = errors.tell()
        errors.write(f"-- {part} --\n".encode())
        errors.flush()
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        try:
            status: int | None = process.wait(max(1.0, until_s - time.time()))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _kill_session(process)
    if status == 0:
        return True
    after = Recording(settings.out / f"{stage}.json", stage)
    running = after.running
    said = _tail(log, begin)
    if status is None:
        after.fail(running or part, "it was still running when the time of the stage was over")
        return True
    # A cell that poisoned its process has recorded its own failure.
    if running is not None:
        after.fail(running, f"the process ended with status {status}: {said}")
        return False
    if after.failures.keys() - recording.failures.keys():
        return False
    after.fail(part, f"the process ended with status {status}: {said}")
    return True


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and whatever it has left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path, begin: int) -> str:
    """The last line of what a process wrote that says something."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - _REPORT_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _card_name() -> str:
    code = "import torch; print(torch.cuda.get_device_name(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
