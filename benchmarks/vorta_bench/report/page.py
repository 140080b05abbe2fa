"""The page: verdicts first, then each stage's figures, then everything that has none."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import Any

from vorta_bench.h200.__main__ import STAGES
from vorta_bench.h200.recording import DRY_RUN
from vorta_bench.report.engine_section import engine_section
from vorta_bench.report.goals import judge
from vorta_bench.report.html_parts import model_title, note, number, section, share_text, table
from vorta_bench.report.results import Results
from vorta_bench.report.style import STYLE
from vorta_bench.report.wire_section import wire_section

__all__ = ["render_page"]

_MAX_LISTED = 60
"""Cells without a figure that are listed by key; the rest are counted."""


def render_page(results: Results) -> str:
    """One HTML document that loads nothing."""
    sections = [
        _banner(results),
        _goals(results),
        _machine(results),
        _ceilings(results),
        *(engine_section(results, model) for model in results.models),
        wire_section(results),
        _kernels(results),
        _checks(results),
        _missing(results),
    ]
    devices = [device for device in results.devices if device not in ("unknown", DRY_RUN)]
    device = ", ".join(devices) or ("a CPU: a dry run" if results.dry_stages else "an unknown device")
    begun = min((str(stage["begun"]) for stage in results.stages.values()), default="")[:16].replace("T", " ")
    title = f"Vorta on {device}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p class=muted>Measured from {escape(begun)} UTC on. Weights are random: speed is "
        f"measured here, not quality.</p>{''.join(sections)}</main></body></html>\n"
    )


def _banner(results: Results) -> str:
    dry = results.dry_stages
    if not dry:
        return ""
    which = "Every stage" if len(dry) == len(results.stages) else f"Of the stages, {', '.join(dry)}"
    return (
        '<aside class="banner"><b>This is a dry run on a CPU. No figure below says anything about a GPU.</b> '
        f"{escape(which)} ran with tiny sizes, a runner that computes nothing and references in place of kernels, to "
        "test that the run and this page work. Goals are not judged by it.</aside>"
    )


def _goals(results: Results) -> str:
    goals = judge(results)
    rows = [
        (
            f'<span class="mark {goal.status.replace(" ", "-")}">{goal.status}</span>',
            escape(goal.wanted),
            escape(goal.measured) or "–",
        )
        for goal in goals
    ]
    counts = {name: sum(goal.status == name for goal in goals) for name in ("reached", "in part", "missed", "not run")}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    about = "In part: the first of two bounds, some of the precisions, or not at matched precision."
    return section("Goals", note(f"{summary}. {about}"), table(("", "goal", "measured"), rows, num_text=3))


def _machine(results: Results) -> str:
    groups = {"card": ("card", "nvidia-smi"), "host": ("host", "tools"), "versions": ("versions",)}
    tables = {}
    for title, keys in groups.items():
        rows = [
            (escape(name.replace("_bytes", "").replace("_", " ")), escape(_plain(name, value)))
            for key in keys
            for name, value in (results.figure("environment", key) or {}).items()
        ]
        tables[title] = table((title, ""), rows, num_text=2)
    missing = (results.figure("environment", "serve packages") or {}).get("missing")
    lacking = note(f"Packages of the server that are missing: {escape(', '.join(missing))}.") if missing else ""
    stages = table(
        ("stage", "begun", "ended", "figures", "failures", "skipped"),
        (
            (
                escape(name),
                *(f"<span class=nowrap>{escape(_moment(stage[key]))}</span>" for key in ("begun", "ended")),
                *(str(len(stage[key])) for key in ("figures", "failures", "skipped")),
            )
            for name in STAGES
            if (stage := results.stages.get(name)) is not None
        ),
        num_text=3,
    )
    absent = [name for name in STAGES if name not in results.stages]
    about = note(f"Not run: {', '.join(absent)}. Times are UTC." if absent else "Times are UTC.")
    left, right = tables["card"] + tables["host"], stages + about + tables["versions"] + lacking
    return section("Machine and run", f'<div class="pair"><div>{left}</div><div>{right}</div></div>')


def _moment(text: str) -> str:
    """Month, day and minute of an ISO time."""
    return text[5:16].replace("T", " ")


def _plain(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:,.1f} GiB"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _ceilings(results: Results) -> str:
    figures = results.figures("ceilings")
    rows = []
    if results.ceilings is not None:
        rows.append(("copy, read and written counted", f"{number(results.ceilings.bandwidth / 1e9)} GB/s"))
        rows.append(("product in bf16", f"{number(results.ceilings.bf16 / 1e12)} TFLOP/s"))
        if "product fp8" in figures:
            rows.append(("product in fp8", f"{number(results.ceilings.fp8 / 1e12)} TFLOP/s"))
        else:
            rows.append(("product in fp8", "not measured: floors of fp8 take bf16's rate and are too lax"))
    if "launch" in figures:
        launch = figures["launch"]
        rows.append(("a launch by itself", f"{launch['launched_s'] * 1e6:.2f} µs"))
        rows.append(("a launch in a CUDA graph", f"{launch['replayed_s'] * 1e6:.2f} µs"))
    products: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, figure in figures.items():
        kind, _, rest = key.partition(" ")
        if kind in ("bf16", "fp8"):
            products[rest][kind] = figure
    detail = table(
        ("the library's product", "bf16 GB/s", "bf16 TFLOP/s", "fp8 GB/s", "fp8 TFLOP/s"),
        (
            (
                escape(name),
                *(
                    number(kinds.get(kind, {}).get(f"{unit}_per_s"), 1 / scale)
                    for kind in ("bf16", "fp8")
                    for unit, scale in (("bytes", 1e9), ("flop", 1e12))
                ),
            )
            for name, kinds in products.items()
        ),
    )
    folded = (
        f"<details><summary>Products by shape: rows x inputs x outputs</summary>{detail}</details>" if detail else ""
    )
    return section("Ceilings", table(("", ""), rows), folded, none="Not measured: without them there are no floors.")


def _kernels(results: Results) -> str:
    rows = []
    for key, figure in results.figures("kernels").items():
        share = figure.get("share_of_ceiling")
        bar = "" if share is None else f'<i class="meter"><i style="width:{min(1.0, share):.0%}"></i></i>'
        model, _, name = key.partition("/")
        rows.append(
            (
                f"{escape(model_title(model))}: {escape(name)}",
                f"{figure['median_s'] * 1e6:,.1f}",
                number(figure["bytes_per_s"] / 1e9),
                number(figure["flop_per_s"] / 1e12) if figure["flop_per_s"] else "–",
                share_text(share) + bar,
                "graph" if figure["is_graph"] else "launched",
            )
        )
    head = ("kernel and rows, tokens or batch x context", "µs", "GB/s", "TFLOP/s", "of its ceiling", "timed")
    body = table(head, rows)
    about = note(
        "The ceiling is the larger of the bytes over the copy's bandwidth and the operations over the product's rate."
    )
    folded = f"{about}<details open><summary>{len(rows)} figures</summary>{body}</details>" if rows else ""
    return section("Kernels", folded, none="Not run.")


def _checks(results: Results) -> str:
    rows = []
    for name, figure in results.figures("build").items():
        rows.append(("build", escape(name), f"{figure['bytes'] / 1e6:.2f} MB in {figure['seconds']:.1f} s"))
    parity = results.figures("parity")
    failed = results.stages.get("parity", {}).get("failures", {})
    if parity or failed:
        large = sum(bool(figure.get("is_large")) for figure in parity.values())
        text = f"{len(parity)} cases agree, {large} of them large; {len(failed)} do not"
        rows.append(("parity", "kernels against references", text))
    for name, figure in results.figures("sanitizer").items():
        said = "clean" if figure["ok"] else "found something" if figure["looked"] else "could not run here"
        rows.append(("sanitizer", escape(name), f"{said} ({figure['seconds']:.0f} s)"))
    for name, figure in results.figures("providers").items():
        if "least_cosine" in figure:
            said = f"least cosine {figure['least_cosine']:.5f} against the CPU's provider"
        else:
            said = ", ".join(f"{value:.0f} tokens/s at {key.rsplit('_')[-1]}" for key, value in figure.items())
        rows.append(("providers", escape(name), said))
    for name, figure in results.figures("engines").items():
        said = f"least cosine {figure['least_cosine']:.5f} against the CPU, {figure['ms']:.3f} ms a run"
        rows.append(("engines", escape(name), said))
    tree = results.figure("environment", "source tree")
    if tree is not None:
        size = f"{tree['bytes'] / 2**20:.1f} MiB of at most {tree['most_bytes'] / 2**20:.0f}"
        rows.append(("source tree", "files that git tracks", size))
    return section("Checks", table(("stage", "what", "result"), rows, num_text=3), none="Not run.")


def _missing(results: Results) -> str:
    found = sorted(results.missing(), key=lambda one: not one[3])
    rows = [
        (
            '<span class="mark missed">failed</span>' if is_failure else '<span class="mark not-run">skipped</span>',
            escape(stage),
            escape(key),
            escape(reason),
        )
        for stage, key, reason, is_failure in found[:_MAX_LISTED]
    ]
    absent = [name for name in STAGES if name not in results.stages]
    notes = []
    if absent:
        notes.append(f"Stages that were not run at all: {', '.join(absent)}.")
    if len(found) > _MAX_LISTED:
        notes.append(f"{len(found) - _MAX_LISTED} more are in the JSON files.")
    return section(
        "Without a figure",
        note(escape(" ".join(notes))) if notes else "",
        table(("", "stage", "figure", "reason"), rows, num_text=4),
        none="Every figure that was asked for is there.",
    )
