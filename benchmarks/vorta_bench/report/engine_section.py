"""The engine by itself: decode and prefill beside their floors, and beside the baselines."""

from __future__ import annotations

from html import escape

from vorta_bench.h200.baselines import BASELINES, MATCHED
from vorta_bench.h200.floor import PRECISIONS
from vorta_bench.report.html_parts import model_title, note, number, section, share_text, table
from vorta_bench.report.plot import Bar, Series, bars, lines, short
from vorta_bench.report.results import Results

__all__ = ["engine_section"]

_DECODE_UNITS = ("tok/s", "each", "of floor", "tok/J")


def engine_section(results: Results, model: str) -> str:
    """Of one model."""
    decodes = [one for one in results.decodes if one.model == model]
    parts = []
    contexts = sorted({one.context for one in decodes})
    plots = []
    for context in contexts:
        series = []
        for precision in PRECISIONS:
            chosen = [
                one for one in decodes if (one.precision, one.mode, one.context) == (precision, "graphs", context)
            ]
            series.append(
                Series(name=precision, style=precision, points=[(one.batch, one.tokens_per_s) for one in chosen])
            )
            floors = [(one.batch, one.batch / one.floor_s) for one in chosen if one.floor_s]
            series.append(Series(name=f"{precision} floor", style=precision, points=floors, is_dashed=True))
        plots.append(
            lines(
                f"Decode at context {context}, measured and floor",
                series,
                x_label="sequences",
                y_label="tokens/s of all sequences",
                is_log=True,
            )
        )
    graphs = [one for one in decodes if one.mode == "graphs" and one.context == min(contexts)]
    shares = [
        Series(
            name=precision,
            style=precision,
            points=[
                (one.batch, 100 * one.share) for one in graphs if one.precision == precision and one.share is not None
            ],
        )
        for precision in PRECISIONS
    ]
    plots.append(
        lines(
            f"Decode at context {contexts[0]}, share of the floor",
            shares,
            x_label="sequences",
            y_label="percent of the floor's tokens/s",
        )
        if contexts
        else ""
    )
    prefills = [one for one in results.prefills if one.model == model]
    series = []
    for precision in PRECISIONS:
        chosen_prefills = [one for one in prefills if one.precision == precision]
        series.append(
            Series(
                name=precision,
                style=precision,
                points=[(one.num_tokens, one.seconds * 1e3) for one in chosen_prefills],
            )
        )
        series.append(
            Series(
                name=f"{precision} floor",
                style=precision,
                points=[(one.num_tokens, one.floor_s * 1e3) for one in chosen_prefills if one.floor_s],
                is_dashed=True,
            )
        )
    plots.append(lines("Prefill of one prompt", series, x_label="prompt tokens", y_label="milliseconds", is_log=True))
    if any(plots):
        parts.append(f'<div class="plots">{"".join(plots)}</div>')
    parts.append(_decode_table(results, model))
    units = [f"{precision} {unit}" for precision in PRECISIONS for unit in ("ms", "of floor")]
    prefill_head = ("prefill, prompt tokens", *units)
    parts.append(
        table(
            prefill_head,
            (
                (
                    str(num_tokens),
                    *(
                        cell
                        for precision in PRECISIONS
                        for cell in next(
                            (
                                (number(one.seconds * 1e3), share_text(one.share))
                                for one in prefills
                                if (one.precision, one.num_tokens) == (precision, num_tokens)
                            ),
                            ("–", "–"),
                        )
                    ),
                )
                for num_tokens in sorted({one.num_tokens for one in prefills})
            ),
        )
    )
    parts.append(_baselines(results, model))
    return section(f"{model_title(model)}: the engine by itself", *parts, none="Not run.")


def _decode_table(results: Results, model: str) -> str:
    found = {(one.context, one.mode, one.batch, one.precision): one for one in results.decodes if one.model == model}
    rows = []
    for context, mode, batch in sorted(
        {place[:3] for place in found}, key=lambda row: (row[0], row[1] != "graphs", row[2])
    ):
        cells = [mode, str(context), str(batch)]
        for precision in PRECISIONS:
            one = found.get((context, mode, batch, precision))
            if one is None:
                cells += ["–"] * len(_DECODE_UNITS)
            else:
                cells += [number(one.tokens_per_s), number(1 / one.step_s)]
                cells += [share_text(one.share), number(one.tokens_per_joule)]
        rows.append(cells)
    head = ["decode", "context", "sequences", *(f"{one}<br>{unit}" for one in PRECISIONS for unit in _DECODE_UNITS)]
    return table(head, rows)


def _baselines(results: Results, model: str) -> str:
    theirs = [one for one in results.baselines if one.model == model]
    if not theirs:
        return note("No baseline was measured with this model.")
    rows, plots = [], []
    for context, batch in sorted({(one.context, one.batch) for one in theirs}):
        ours = {
            one.precision: one.tokens_per_s
            for one in results.decodes
            if (one.model, one.mode, one.context, one.batch) == (model, "graphs", context, batch)
        }
        shown = [Bar(f"Vorta {name}", name, rate, short(rate)) for name, rate in ours.items()]
        for other in sorted(theirs, key=lambda one: one.baseline):
            if (other.context, other.batch) != (context, batch):
                continue
            shown.append(Bar(f"{other.baseline}", "other", other.tokens_per_s, short(other.tokens_per_s)))
            matched = MATCHED[other.baseline]
            rows.append(
                (
                    f"{other.baseline}: {escape(BASELINES[other.baseline])}",
                    escape(other.version),
                    str(context),
                    str(batch),
                    number(other.tokens_per_s),
                    *(
                        ("<b>{}</b>" if precision == matched else "{}").format(
                            f"{ours[precision] / other.tokens_per_s:.2f}x" if precision in ours else "–"
                        )
                        for precision in PRECISIONS
                    ),
                )
            )
        plots.append(
            bars(f"{batch} sequence{'s' if batch > 1 else ''}, context {context}", shown, y_label="decode, tokens/s")
        )
    head = ("baseline", "version", "context", "sequences", "tokens/s", *(f"Vorta {one}, ratio" for one in PRECISIONS))
    return (
        "<h3>Decode against baselines on the same card</h3>"
        + note("A ratio is Vorta's tokens/s over the baseline's in its row; bold where the precision is the same.")
        + f'<div class="plots">{"".join(plots)}</div>'
        + table(head, rows, num_text=2)
    )
