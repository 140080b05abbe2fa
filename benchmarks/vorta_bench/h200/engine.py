"""The runner by itself: decode steps at several batches and contexts, and prefill, against the floor.

A process holds one model in one precision. What a step costs the engine around it is no part of this; the wire stage
compares the two.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vorta_bench.h200.ceilings import known_ceilings
from vorta_bench.h200.drive import decode_s, prefill_s, random_prompts
from vorta_bench.h200.energy import measure_energy
from vorta_bench.h200.floor import PRECISIONS, decode_floor_s, prefill_floor_s, weight_bytes
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.runner import make_runner
from vorta_bench.h200.stage import Cell, Settings, Skip, once

__all__ = ["cells", "decode_key", "parts", "prefill_key"]

BATCHES, DRY_BATCHES = (1, 8, 32, 64, 128, 256), (1, 2, 4)
CONTEXTS, DRY_CONTEXTS = (512, 1024), (16, 32)
PROMPTS, DRY_PROMPTS = (128, 512, 2048), (8, 16)
_STEPS, _DRY_STEPS = 32, 3
_WINDOWS = 5
_MEMORY_SHARE = 0.92
"""Of the card's memory that weights and KV may take."""


def decode_key(model: str, precision: str, mode: str, batch: int, context: int) -> str:
    """The key of a decode figure; `mode` is "graphs" or "eager"."""
    return f"{model}/{precision}/{mode}/decode {batch}x{context}"


def prefill_key(model: str, precision: str, num_tokens: int) -> str:
    """The key of a prefill figure."""
    return f"{model}/{precision}/graphs/prefill {num_tokens}"


@dataclass(frozen=True, slots=True)
class _Part:
    model: str
    precision: str
    mode: str
    work: str

    def __str__(self) -> str:
        return f"{self.model}/{self.precision}/{self.mode}/{self.work}"


def parts(settings: Settings) -> Sequence[str]:
    """The first context of every model and precision, then prefill, then without graphs, then longer contexts."""
    contexts = settings.choose(CONTEXTS, DRY_CONTEXTS)
    pairs = [(model, precision) for model in settings.models for precision in settings.precisions]
    found = [_Part(*pair, "graphs", f"decode-{contexts[0]}") for pair in pairs]
    found += [_Part(*pair, "graphs", "prefill") for pair in pairs]
    found += [
        _Part(settings.models[0], precision, "eager", f"decode-{contexts[0]}") for precision in settings.precisions
    ]
    found += [_Part(*pair, "graphs", f"decode-{context}") for context in contexts[1:] for pair in pairs]
    return [str(part) for part in found]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """The batches of one context, or the prompts; the largest first, as it fills the slots of all."""
    model, precision, mode, work = part.split("/")
    if work == "prefill":
        lengths = settings.choose(PROMPTS, DRY_PROMPTS)
        runner = once(
            lambda: make_runner(
                model,
                precision,
                settings.device,
                num_slots=2,
                max_model_len=max(lengths) + 64,
                is_fake=settings.is_fake,
            )
        )
        return [
            Cell(
                prefill_key(model, precision, length),
                lambda length=length: _prefill(settings, runner(), model, precision, length),  # type: ignore[misc]
                30,
            )
            for length in lengths
        ]
    context = int(work.removeprefix("decode-"))
    return _decode_cells(settings, model, precision, mode, context)


def _decode_cells(settings: Settings, model: str, precision: str, mode: str, context: int) -> list[Cell]:
    num_steps = settings.choose(_STEPS, _DRY_STEPS)
    batches = settings.choose(BATCHES, DRY_BATCHES)
    if mode == "eager":
        batches = batches[:3]
    max_model_len = context + num_steps + 16

    @once
    def filled() -> tuple[Any, Any]:
        num_slots = max(batch for batch in batches if not _memory_error(settings, model, precision, batch, context))
        runner = make_runner(
            model,
            precision,
            settings.device,
            num_slots=num_slots,
            max_model_len=max_model_len,
            use_graphs=mode == "graphs",
            is_fake=settings.is_fake,
        )
        _, first = prefill_s(runner, random_prompts(num_slots, context, SHAPES[model].vocab_size))
        return runner, first

    def measure(batch: int) -> Figure:
        if reason := _memory_error(settings, model, precision, batch, context):
            raise Skip(reason)
        runner, first = filled()
        decode_s(runner, first[:batch], context, num_steps)  # warms up, and captures its graph
        with measure_energy(settings.device) as energy:
            windows_s = [decode_s(runner, first[:batch], context, num_steps) for _ in range(_WINDOWS)]
        step_s = statistics.median(windows_s) / num_steps
        # A window's sequences grow by its steps; each step reads K and V of its own token too.
        mean_context = context + (num_steps + 1) / 2
        figure: Figure = {
            "batch": batch,
            "context": context,
            "mean_context": mean_context,
            "steps": num_steps,
            "windows_s": windows_s,
            "step_s": step_s,
            "tokens_per_s": batch / step_s,
            "tokens_per_s_per_stream": 1 / step_s,
            "tokens_per_joule": energy.per_joule(batch * num_steps * _WINDOWS),
            "energy_source": energy.source,
        }
        ceilings = known_ceilings(settings)
        if ceilings is not None:
            floor_s = decode_floor_s(SHAPES[model], precision, ceilings, batch=batch, context=mean_context)
            figure |= {"floor_s": floor_s, "share_of_floor": floor_s / step_s}
        return figure

    return [
        Cell(
            decode_key(model, precision, mode, batch, context),
            lambda batch=batch: measure(batch),  # type: ignore[misc]
            40,
        )
        for batch in batches
    ]


def _prefill(settings: Settings, runner: Any, model: str, precision: str, length: int) -> Figure:
    shape = SHAPES[model]
    windows_s = []
    with measure_energy(settings.device) as energy:
        for seed in range(_WINDOWS + 2):
            prompt = random_prompts(1, length, shape.vocab_size, seed)
            windows_s.append(prefill_s(runner, prompt)[0])
    seconds = statistics.median(windows_s[2:])
    figure: Figure = {
        "num_tokens": length,
        "windows_s": windows_s[2:],
        "seconds": seconds,
        "tokens_per_s": length / seconds,
        "tokens_per_joule": energy.per_joule(length * len(windows_s)),
        "energy_source": energy.source,
    }
    ceilings = known_ceilings(settings)
    if ceilings is not None:
        floor_s = prefill_floor_s(shape, precision, ceilings, num_tokens=length)
        figure |= {"floor_s": floor_s, "share_of_floor": floor_s / seconds}
    return figure


def _memory_error(settings: Settings, model: str, precision: str, batch: int, context: int) -> str:
    """Why a batch does not fit; empty when it does."""
    if settings.is_dry:
        return ""
    import torch

    shape = SHAPES[model]
    kv_bytes = batch * (context + _STEPS + 64) * shape.kv_elements * PRECISIONS[precision].kv_bytes
    # The embedding lies there in 16 bits beside what a step reads.
    needed = weight_bytes(shape, precision) + 2 * shape.num_head + kv_bytes
    total = torch.cuda.mem_get_info()[1]
    if needed <= _MEMORY_SHARE * total:
        return ""
    return f"does not fit: {needed / 1e9:.0f} GB of weights and KV on a card of {total / 1e9:.0f} GB"
