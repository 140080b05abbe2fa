"""End to end over gRPC: by number of streams, the wave beside the bare loop, single requests, the soak."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from vorta_bench.h200.baselines import MATCHED
from vorta_bench.h200.floor import PRECISIONS
from vorta_bench.h200.workload import BETWEEN_TOKENS_S
from vorta_bench.report.html_parts import model_title, number, section, table
from vorta_bench.report.plot import Series, lines
from vorta_bench.report.results import Results, Streams

__all__ = ["wire_section"]


def wire_section(results: Results) -> str:
    """Of all models that were served."""
    parts = []
    groups: dict[tuple[str, int, int], list[Streams]] = defaultdict(list)
    for one in results.streams:
        groups[(one.model, one.prompt, one.output)].append(one)
    for (model, prompt, output), members in groups.items():
        parts.append(f"<h3>{escape(model_title(model))}, {prompt} prompt and {output} output tokens</h3>")
        parts.append(f'<div class="plots">{_stream_plots(members)}</div>')
        parts.append(_stream_table(results, model, members))
    single = []
    for key, figure in results.figures("wire").items():
        if key.endswith("/single"):
            model, precision, _ = key.split("/")
            asked = f"{figure['prompt_tokens']}+{figure['output_tokens_each']}"
            single.append(
                (
                    model_title(model),
                    precision,
                    asked,
                    f"{figure['median_s'] * 1e3:,.1f}",
                    f"{figure['ttft_p50_s'] * 1e3:,.1f}",
                )
            )
    single_table = table(("one request", "precision", "tokens", "ms", "first token, ms"), single, num_text=3)
    waves, soaks = [], []
    for key, figure in results.figures("wire").items():
        model, precision, work = key.split("/")
        if work.startswith("wire wave"):
            bare = results.figure("wire", key.replace("/wire wave", "/bare wave"))
            rate = figure["output_tokens_per_s"]
            other = None if bare is None else bare["output_tokens_per_s"]
            ratio = "–" if other is None else f"{rate / other:.3f}"
            waves.append((model_title(model), precision, str(figure["streams"]), number(rate), number(other), ratio))
        elif work == "soak":
            memory = "; ".join(
                f"{name} {figure['resident_bytes_before'].get(name, 0) / 2**20:,.0f} to {size / 2**20:,.0f} MiB"
                for name, size in figure["resident_bytes_after"].items()
            )
            soaks.append(
                (
                    model_title(model),
                    precision,
                    memory,
                    f"{figure['duration_s']:.0f}",
                    str(figure["streams"]),
                    f"{figure['requests']} ({figure['failed']} failed)",
                    number(figure["early_tokens_per_s"]),
                    number(figure["late_tokens_per_s"]),
                )
            )
    wave_head = ("all at once", "precision", "streams", "gRPC, tokens/s", "bare loop", "ratio")
    soak_head = ("soak", "precision", "resident memory", "s", "streams", "requests", "early tokens/s", "late tokens/s")
    small = single_table + table(wave_head, waves, num_text=2)
    parts.append(f'<div class="pair">{small}</div>' if small else "")
    parts.append(table(soak_head, soaks, num_text=3))
    return section("End to end over gRPC", *parts, none="Not run.")


def _stream_plots(members: Sequence[Streams]) -> str:
    found = [precision for precision in PRECISIONS if any(one.precision == precision for one in members)]

    def series(name: str, key: str, factor: float, *, is_dashed: bool = False) -> list[Series]:
        return [
            Series(
                name=f"{precision}{name}",
                style=precision,
                is_dashed=is_dashed,
                points=[
                    (one.streams, one.figure[key] * factor)
                    for one in members
                    if one.precision == precision and one.figure[key] is not None
                ],
            )
            for precision in found
        ]

    throughput = series("", "output_tokens_per_s", 1)
    throughput += series(" goodput", "goodput_tokens_per_s", 1, is_dashed=True)
    tpot = series(" p50", "tpot_p50_s", 1e3) + series(" p99", "tpot_p99_s", 1e3, is_dashed=True)
    ttft = series(" p50", "ttft_p50_s", 1e3) + series(" p99", "ttft_p99_s", 1e3, is_dashed=True)
    rule = (BETWEEN_TOKENS_S * 1e3, "150 tokens/s")
    return (
        lines("Throughput, and goodput at 150 tokens/s a stream", throughput, x_label="streams", y_label="tokens/s")
        + lines("Time between tokens (TPOT)", tpot, x_label="streams", y_label="milliseconds", rule=rule)
        + lines("Time to the first token (TTFT)", ttft, x_label="streams", y_label="milliseconds", is_log=True)
        + lines(
            "Tokens per joule",
            series("", "tokens_per_joule", 1),
            x_label="streams",
            y_label="output tokens/J of the card",
        )
    )


def _stream_table(results: Results, model: str, members: Sequence[Streams]) -> str:
    rows = []
    for one in sorted(members, key=lambda one: ([*PRECISIONS].index(one.precision), one.streams)):
        figure = one.figure
        versus = []
        for other in results.batches:
            asked = (model, one.prompt, one.output, one.streams)
            if (other.model, other.prompt, other.output, other.batch) == asked:
                ratio = f"{figure['output_tokens_per_s'] / other.tokens_per_s:.2f}x {other.baseline}"
                versus.append(f"<b>{ratio}</b>" if MATCHED[other.baseline] == one.precision else ratio)
        rows.append(
            (
                one.precision,
                str(one.streams),
                number(figure["output_tokens_per_s"]),
                number(figure["goodput_tokens_per_s"]),
                *(number(figure[f"ttft_{share}_s"], 1e3) for share in ("p50", "p99")),
                *(number(figure[f"tpot_{share}_s"], 1e3) for share in ("p50", "p99")),
                number(figure["tokens_per_joule"]),
                f"{figure['requests']} ({figure['failed']})",
                "<br>".join(versus) or "–",
            )
        )
    head = (
        *("precision", "streams", "tokens/s", "goodput", "TTFT p50, ms", "p99", "TPOT p50, ms", "p99", "tokens/J"),
        *("requests (failed)", "over a static batch of a baseline"),
    )
    return table(head, rows)
