"""What the card can do, measured on the spot: the bandwidth of a copy, rates of products, the cost of a launch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vorta_bench.h200.floor import Ceilings
from vorta_bench.h200.measuring import measure_calls
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "figures_to_ceilings", "known_ceilings", "parts"]

COPY, BF16, FP8 = "copy", "product bf16", "product fp8"
_BATCHES = (1, 8, 32, 128, 256)


def parts(settings: Settings) -> Sequence[str]:
    """One process."""
    return ["ceilings"]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """The three ceilings, launches, and the library's products at the shapes of a 7B model."""
    size = settings.choose(8192, 128)
    found = [
        Cell(COPY, lambda: _copy(settings)),
        Cell(BF16, lambda: _product(settings, "bf16", size, size, size, copies=1)),
        Cell(FP8, lambda: _product(settings, "fp8", size, size, size, copies=1)),
        Cell("launch", lambda: _launch(settings)),
    ]
    shape = SHAPES[settings.models[0]]
    for batch in settings.choose(_BATCHES, (1, 8)):
        for name, (num_outputs, num_inputs) in shape.matrices.items():
            for kind in ("bf16", "fp8"):
                found.append(
                    Cell(
                        f"{kind} {name} {batch}x{num_inputs}x{num_outputs}",
                        lambda a=(kind, batch, num_inputs, num_outputs): _product(settings, *a),  # type: ignore[misc]
                        10,
                    )
                )
    return found


def known_ceilings(settings: Settings) -> Ceilings | None:
    """Those of this run, where the stage has measured them."""
    path = settings.out / "ceilings.json"
    return figures_to_ceilings(json.loads(path.read_text())["figures"]) if path.exists() else None


def figures_to_ceilings(figures: dict[str, Any]) -> Ceilings | None:
    """The ceilings among the stage's figures; None when the bandwidth or the rate of bfloat16 is missing.

    Where float8 could not be measured its rate is that of bfloat16, which makes floors of fp8 too lax at large batches.
    """
    if COPY not in figures or BF16 not in figures:
        return None
    bf16 = figures[BF16]["flop_per_s"]
    fp8 = figures.get(FP8, figures[BF16])["flop_per_s"]
    return Ceilings(bandwidth=figures[COPY]["bytes_per_s"], bf16=bf16, fp8=fp8)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise Skip("torch is not installed") from error
    return torch


def _copy(settings: Settings) -> Figure:
    torch = _torch()
    num_bytes = settings.choose(2 << 30, 4 << 20)
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    timing = measure_calls([lambda: target.copy_(source)], settings.device, graph=False)
    return {"bytes": num_bytes, "median_s": timing.median_s, "bytes_per_s": 2 * num_bytes / timing.median_s}


def _product(
    settings: Settings, kind: str, num_rows: int, num_inputs: int, num_outputs: int, copies: int | None = None
) -> Figure:
    """Rows times a matrix, random data, the library's kernel. Weights rotate over more bytes than the L2 cache has."""
    torch = _torch()
    width = 1 if kind == "fp8" else 2
    if copies is None:
        copies = 1 if settings.is_dry else max(1, -(-(256 << 20) // (num_inputs * num_outputs * width)))
    calls: list[Callable[[], Any]] = []
    for _ in range(copies):
        x = torch.randn(num_rows, num_inputs, device=settings.device).bfloat16()
        weight = torch.randn(num_outputs, num_inputs, device=settings.device).bfloat16()
        if kind == "bf16":
            calls.append(lambda x=x, weight=weight: torch.mm(x, weight.T))  # type: ignore[misc]
            continue
        # Its rows are a multiple of 16, as the kernel demands: a smaller batch is padded.
        rows = torch.nn.functional.pad(x, (0, 0, 0, -num_rows % 16)).to(torch.float8_e4m3fn)
        matrix, one = weight.to(torch.float8_e4m3fn), torch.ones((), device=settings.device)
        calls.append(
            lambda rows=rows, matrix=matrix, one=one: torch._scaled_mm(  # type: ignore[misc]
                rows, matrix.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        )
    timing = measure_calls(calls, settings.device, rounds=1 if copies > 4 else 4)
    moved = width * (num_inputs * num_outputs + num_rows * num_inputs) + 2 * num_rows * num_outputs
    return {
        "median_s": timing.median_s,
        "flop_per_s": 2 * num_rows * num_inputs * num_outputs / timing.median_s,
        "bytes_per_s": moved / timing.median_s,
        "is_graph": timing.is_graph,
    }


def _launch(settings: Settings) -> Figure:
    """A kernel that does nothing worth mentioning: launched one by one, and replayed as one graph."""
    torch = _torch()
    value = torch.zeros(16, device=settings.device)
    count = settings.choose(300, 10)
    single = measure_calls([lambda: value.add_(1)], settings.device, rounds=count, graph=False)
    replayed = measure_calls([lambda: value.add_(1)], settings.device, rounds=count)
    return {"launched_s": single.median_s, "replayed_s": replayed.median_s, "is_graph": replayed.is_graph}
