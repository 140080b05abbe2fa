"""What the project set out to reach on one card, and whether a run shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vorta_bench.h200.baselines import BASELINES
from vorta_bench.h200.floor import PRECISIONS
from vorta_bench.h200.workload import WAVE
from vorta_bench.report.results import Results

__all__ = ["MODEL", "Goal", "judge"]

MODEL, CONTEXT = "llama-2-7b", 512
"""What most goals are about."""

Status = Literal["reached", "in part", "missed", "not run"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        wanted: In words.
        measured: In words; empty where nothing was measured.
        status: "in part" where the first of two bounds is reached, or another precision than the matched one.
    """

    wanted: str
    measured: str
    status: Status


_SHARES = ((1, "bf16", 0.70, 0.85), (1, "fp8", 0.60, 0.80), (32, "fp8", 0.55, 0.75), (256, "fp8", 0.50, 0.70))
_RATIOS = ((1, 3.0), (32, 4.0), (256, 4.0))
_WIRE_SHARE = 0.95


def judge(results: Results) -> list[Goal]:
    """All goals, in order. A dry run shows none of them, whatever its figures."""
    if results.dry_stages:
        results = Results({name: stage for name, stage in results.stages.items() if name not in results.dry_stages})
    return [*_shares(results), *_ratios(results), _wire(results), *_single(results), *_per_stream(results)]


def _shares(results: Results) -> Iterator[Goal]:
    for batch, precision, least, goal in _SHARES:
        wanted = (
            f"decode of Llama-2-7B, batch {batch}, context {CONTEXT}, {precision}: at least {least:.0%} of the floor"
        )
        wanted += f" (then {goal:.0%})"
        share = next(
            (
                one.share
                for one in results.decodes
                if (one.model, one.precision, one.mode) == (MODEL, precision, "graphs")
                and (one.batch, one.context) == (batch, CONTEXT)
            ),
            None,
        )
        if share is None:
            yield Goal(wanted, "", "not run")
            continue
        status: Status = "reached" if share >= goal else "in part" if share >= least else "missed"
        yield Goal(wanted, f"{share:.0%} of the floor", status)


def _ratios(results: Results) -> Iterator[Goal]:
    name = BASELINES["B0"]
    for batch, least in _RATIOS:
        wanted = f"decode of Llama-2-7B, batch {batch}, context {CONTEXT}: at least {least:.0f}x B0 ({name})"
        theirs = next(
            (
                one.tokens_per_s
                for one in results.baselines
                if (one.model, one.baseline, one.batch, one.context) == (MODEL, "B0", batch, CONTEXT)
            ),
            None,
        )
        ours = {
            one.precision: one.tokens_per_s
            for one in results.decodes
            if (one.model, one.mode, one.batch, one.context) == (MODEL, "graphs", batch, CONTEXT)
        }
        if theirs is None or not ours:
            yield Goal(wanted, "", "not run")
            continue
        ratios = {precision: rate / theirs for precision, rate in ours.items()}
        measured = ", ".join(f"{precision} {ratio:.1f}x" for precision, ratio in ratios.items()) + " (B0 in bf16)"
        if ratios.get("bf16", 0.0) >= least:
            yield Goal(wanted, measured, "reached")
        elif max(ratios.values()) >= least:
            yield Goal(wanted, f"{measured}; not at matched precision", "in part")
        else:
            yield Goal(wanted, measured, "missed")


def _wire(results: Results) -> Goal:
    wanted = f"{WAVE} streams of Llama-2-7B over gRPC: at least {_WIRE_SHARE:.2f} of the bare loop's tokens/s"
    ratios = {}
    for precision in ("fp8", "bf16", "int4"):
        wire = results.figure("wire", f"{MODEL}/{precision}/wire wave x{WAVE}")
        bare = results.figure("wire", f"{MODEL}/{precision}/bare wave x{WAVE}")
        if wire is not None and bare is not None:
            ratios[precision] = wire["output_tokens_per_s"] / bare["output_tokens_per_s"]
    if not ratios:
        return Goal(wanted, "", "not run")
    measured = ", ".join(f"{precision} {ratio:.2f}" for precision, ratio in ratios.items())
    good = [ratio >= _WIRE_SHARE for ratio in ratios.values()]
    return Goal(wanted, measured, "reached" if all(good) else "in part" if any(good) else "missed")


def _single(results: Results) -> Iterator[Goal]:
    wanted = "one request of 128 tokens over gRPC, Llama-2-7B: under 1 s"
    found = {}
    for precision in ("bf16", "fp8", "int4"):
        figure = results.figure("wire", f"{MODEL}/{precision}/single")
        if figure is not None:
            found[precision] = figure["median_s"]
    if not found:
        yield Goal(wanted, "", "not run")
        return
    measured = ", ".join(f"{precision} {seconds:.2f} s" for precision, seconds in found.items())
    good = [seconds < 1.0 for seconds in found.values()]
    yield Goal(wanted, measured, "reached" if all(good) else "in part" if any(good) else "missed")


def _per_stream(results: Results) -> Iterator[Goal]:
    for model, title in ((MODEL, "Llama-2-7B"), ("llama-3.1-8b", "Llama-3.1-8B")):
        wanted = f"more than 150 tokens/s in each stream, {title} over gRPC: the most streams that hold it"
        found = {}
        for precision in PRECISIONS:
            figure = results.figure("wire", f"{model}/{precision}/most streams")
            if figure is not None:
                found[precision] = figure
        if not found:
            yield Goal(wanted, "", "not run")
            continue
        texts = []
        for precision, figure in found.items():
            at_least = "at least " if figure["streams"] == figure["most_tried"] else ""
            rate = f", {1 / figure['tpot_p50_s']:.0f} tokens/s in the median stream" if figure["tpot_p50_s"] else ""
            texts.append(f"{precision} {at_least}{figure['streams']} streams{rate}")
        asked = next(iter(found.values()))
        texts.append(f"{asked['prompt_tokens']}+{asked['output_tokens_each']} tokens")
        holding = any(figure["streams"] for figure in found.values())
        yield Goal(wanted, "; ".join(texts), "reached" if holding else "missed")
