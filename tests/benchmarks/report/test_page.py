"""The page: goals are judged by GPU runs alone, nothing is loaded from elsewhere, what is missing is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vorta_bench.h200.recording import DRY_RUN
from vorta_bench.report.goals import judge
from vorta_bench.report.page import render_page
from vorta_bench.report.plot import Bar, Series, bars, lines, short
from vorta_bench.report.results import Results

CEILINGS = {
    "copy": {"bytes_per_s": 4.3e12},
    "product bf16": {"flop_per_s": 790e12},
    "product fp8": {"flop_per_s": 1400e12},
}


def stage(name: str, figures: dict[str, Any], device: str = "NVIDIA H200", **others: Any) -> dict[str, Any]:
    times = {"begun": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:05:00+00:00"}
    rest = {"failures": {}, "skipped": {}, "running": None, "command": "", **times}
    return {"stage": name, "device": device, "figures": figures, **rest, **others}


def decode(batch: int, step_s: float) -> dict[str, Any]:
    return {"batch": batch, "context": 512, "mean_context": 528.5, "step_s": step_s, "tokens_per_joule": 2.0}


def baseline(batch: int, tokens_per_s: float) -> dict[str, Any]:
    figure = {"batch": batch, "context": 512, "tokens_per_s": tokens_per_s}
    return {**figure, "first_s": 0.1, "version": "transformers 5"}


def run(device: str = "NVIDIA H200") -> Results:
    """Decode at 4 ms in bf16 (79 % of the floor) and 2 ms in fp8 (79 %); B0 at 60 tokens/s, and at 32 too quick."""
    engine = {
        "llama-2-7b/bf16/graphs/decode 1x512": decode(1, 0.004),
        "llama-2-7b/fp8/graphs/decode 1x512": decode(1, 0.0015),
        "llama-2-7b/bf16/graphs/decode 32x512": decode(32, 0.0064),
        "llama-2-7b/fp8/graphs/decode 32x512": decode(32, 0.0032),
        "llama-2-7b/fp8/graphs/decode 256x512": decode(256, 0.1),
        "llama-2-7b/fp8/graphs/prefill 512": {"num_tokens": 512, "seconds": 0.008},
    }
    others = {
        "llama-2-7b/B0/decode 1x512": baseline(1, 60.0),
        "llama-2-7b/B0/decode 32x512": baseline(32, 2000.0),
        "llama-2-7b/B0/decode 256x512": baseline(256, 3000.0),
    }
    streams = {"streams": 128, "prompt_tokens": 128, "output_tokens_each": 128, "tokens_per_joule": 9.0}
    streams |= {"requests": 500, "failed": 0, "output_tokens_per_s": 20_000.0, "goodput_tokens_per_s": 15_000.0}
    streams |= {f"{kind}_{share}_s": 0.005 for kind in ("ttft", "tpot") for share in ("p50", "p99")}
    wave = {"streams": 128, "output_tokens_per_s": 9_600.0}
    wire = {
        "llama-2-7b/fp8/128+128 x128": streams,
        "llama-2-7b/fp8/wire wave x128": wave,
        "llama-2-7b/fp8/bare wave x128": {**wave, "output_tokens_per_s": 10_000.0},
        "llama-2-7b/fp8/most streams": {
            "streams": 104,
            "most_tried": 256,
            "prompt_tokens": 128,
            "output_tokens_each": 128,
            "tpot_p50_s": 0.0064,
        },
        "llama-2-7b/fp8/single": {"median_s": 0.4, "ttft_p50_s": 0.01, "prompt_tokens": 128, "output_tokens_each": 128},
    }
    failures = {"llama-2-7b/B3": "ImportError: no <module>"}
    return Results(
        {
            "ceilings": stage("ceilings", CEILINGS, device),
            "engine": stage("engine", engine, device),
            "baselines": stage("baselines", others, device, failures=failures),
            "wire": stage("wire", wire, device),
        }
    )


def test_goals_are_judged() -> None:
    statuses = [goal.status for goal in judge(run())]
    shares, ratios, rest = statuses[:4], statuses[4:7], statuses[7:]
    assert shares == ["in part", "reached", "reached", "missed"]
    # At batch 32 fp8 alone is four times as fast as B0, which is not matched; at 256 nothing is.
    assert ratios == ["reached", "in part", "missed"]
    assert rest == ["reached", "reached", "reached", "not run"]
    assert judge(run())[9].measured == "fp8 104 streams, 156 tokens/s in the median stream; 128+128 tokens"


def test_a_dry_run_judges_nothing_and_says_so_loudly() -> None:
    results = run(DRY_RUN)
    assert {goal.status for goal in judge(results)} == {"not run"}
    page = render_page(results)
    assert "No figure below says anything about a GPU" in page
    assert "No figure below says anything about a GPU" not in render_page(run())


def test_one_dry_stage_among_others_is_named() -> None:
    results = run()
    results.stages["wire"]["device"] = DRY_RUN
    page = render_page(results)
    assert "Of the stages, wire ran with tiny sizes" in page
    assert [goal.status for goal in judge(results)][7:] == ["not run"] * 4


def test_the_page_stands_alone_and_names_what_is_missing() -> None:
    page = render_page(run())
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "ImportError: no &lt;module&gt;" in page
    assert (
        "Stages that were not run at all: environment, build, parity, sanitizer, kernels, providers, engines." in page
    )
    assert page.count("<svg") >= 5
    assert "B0: transformers generate, bf16, static batch" in page
    assert "<b>4.17x</b>" in page  # 250 over 60 tokens/s, both in bf16


def test_a_folder_is_read_and_others_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ceilings.json").write_text(json.dumps(stage("ceilings", {})))
    (tmp_path / "other.json").write_text("[1]")
    results = Results.read(tmp_path)
    assert (list(results.stages), results.ceilings) == (["ceilings"], None)
    assert "without them there are no floors" in render_page(results)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.04217, "0.0422"),
        (2.5, "2.5"),
        (100, "100"),
        (9_999.0, "10,000"),
        (24_599, "24.6k"),
        (4.3e12, "4.3T"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("values", [(1.0, 1.0), (3.0, 900.0), (0.001, 5e6), (10.0, 100.0)])
@pytest.mark.parametrize("is_log", [False, True])
def test_lines_stay_inside_their_plot(values: tuple[float, float], is_log: bool) -> None:
    series = [Series(name="a", style="bf16", points=list(enumerate(values)))]
    svg = lines("t", series, x_label="x", y_label="y", is_log=is_log)
    heights = [float(y) for y in re.findall(r'cy="([\d.-]+)"', svg)]
    assert len(heights) == 2
    assert all(14 <= y <= 300 - 42 for y in heights)


def test_what_has_no_points_is_not_drawn() -> None:
    assert lines("t", [Series(name="a", style="bf16", points=[])], x_label="x", y_label="y") == ""
    assert bars("t", [], y_label="y") == ""
    assert "<rect" in bars("t", [Bar("a", "other", 0.0, "0")], y_label="y")
