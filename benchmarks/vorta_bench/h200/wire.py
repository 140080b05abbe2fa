"""End to end: the real `vorta serve` on a random checkpoint, closed-loop clients over gRPC, energy of the card.

A figure of a number of streams is of the steady part of its run: tokens that arrived after the ramp and before new
requests stopped. TTFT and TPOT are of the requests that began in it. Goodput counts the tokens of requests whose time
between tokens is at most 6.67 ms, 150 tokens/s. The wave is one batch of requests at once, which a bare loop over the
same runner computes too: their ratio is what the engine, the processes and the wire cost.
"""

from __future__ import annotations

import atexit
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vorta_bench.h200.clients import Clients, Request
from vorta_bench.h200.drive import decode_s, prefill_s, random_prompts
from vorta_bench.h200.energy import measure_energy
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.runner import make_runner, serve_arguments
from vorta_bench.h200.stage import Cell, Settings, once
from vorta_bench.h200.workload import (
    BETWEEN_TOKENS_S,
    DRY_LENGTHS,
    DRY_STREAMS,
    DRY_WAVE,
    LENGTHS,
    STREAMS,
    WAVE,
)
from vorta_bench.load import percentile
from vorta_bench.wire import Server, serving

__all__ = ["cells", "key", "most_streams_key", "parts", "summarise_requests"]

_SOAK_S, _DRY_SOAK_S = 120.0, 1.0
_ROUNDS = 3


def key(model: str, precision: str, prompt: int, output: int, streams: int) -> str:
    """The key of a figure of a number of streams."""
    return f"{model}/{precision}/{prompt}+{output} x{streams}"


def most_streams_key(model: str, precision: str) -> str:
    """The key of the most streams that each get 150 tokens/s."""
    return f"{model}/{precision}/most streams"


def parts(settings: Settings) -> Sequence[str]:
    """A server and a bare loop for each model and precision, fp8 first; they never share the card."""
    ordered = sorted(settings.precisions, key=lambda precision: precision != "fp8")
    pairs = [(model, precision) for model in settings.models for precision in ordered]
    return [f"{model}/{precision}/{kind}" for model, precision in pairs for kind in ("serve", "bare")]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """The wave and single requests, then streams by number and length, then the soak of the first server."""
    model, precision, kind = part.split("/")
    wave = settings.choose(WAVE, DRY_WAVE)
    if kind == "bare":
        cell = f"{model}/{precision}/bare wave x{wave}"
        return [Cell(cell, lambda: _bare_wave(settings, model, precision, wave), settings.choose(60, 5))]
    loaded = once(lambda: _Loaded.start(settings, model, precision))
    found = [
        Cell(f"{model}/{precision}/single", lambda: _single(settings, loaded()), settings.choose(120, 5)),
        Cell(f"{model}/{precision}/wire wave x{wave}", lambda: _wave(settings, loaded(), wave), settings.choose(60, 5)),
    ]
    for prompt, output in settings.choose(LENGTHS, DRY_LENGTHS):
        for streams in settings.choose(STREAMS, DRY_STREAMS):
            found.append(
                Cell(
                    key(model, precision, prompt, output, streams),
                    lambda a=(prompt, output, streams): _steady(settings, loaded(), *a),  # type: ignore[misc]
                    settings.choose(45, 5),
                )
            )
    found.append(
        Cell(most_streams_key(model, precision), lambda: _most_streams(settings, loaded()), settings.choose(90, 5))
    )
    if part == parts(settings)[0]:
        found.append(
            Cell(f"{model}/{precision}/soak", lambda: _soak(settings, loaded(), wave), settings.choose(150, 5))
        )
    return found


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A server that runs until this process ends, and the processes that load it."""

    server: Server
    clients: Clients

    @classmethod
    def start(cls, settings: Settings, model: str, precision: str) -> _Loaded:
        stack = ExitStack()
        atexit.register(stack.close)
        streams = max(settings.choose(STREAMS, DRY_STREAMS))
        arguments = serve_arguments(model, precision, settings.device, settings.work, streams, is_fake=settings.is_fake)
        try:
            server = stack.enter_context(serving(list(arguments)))
        except SystemExit as error:
            raise RuntimeError(f"the server did not start: {str(error)[-1500:]}") from error
        num_processes = max(1, min(8, (os.cpu_count() or 2) // 2))
        return cls(server, stack.enter_context(Clients(server.address, num_processes)))


def summarise_requests(requests: Sequence[Request], begin_s: float, end_s: float) -> Figure:
    """Rates and times of the part of a run between two times, in seconds from its start.

    Raises RuntimeError when no request ended well.
    """
    good = [request for request in requests if not request.error and request.tokens]
    if not good:
        errors = sorted({request.error for request in requests})
        raise RuntimeError(f"no request ended well: {errors[:3]}")
    inside = [request for request in good if begin_s <= request.sent_s <= end_s] or good
    window_s = end_s - begin_s
    arrived = [request.tokens_until(end_s) - request.tokens_until(begin_s) for request in good]
    in_time = [
        tokens
        for request, tokens in zip(good, arrived, strict=True)
        if request.tpot_s is None or request.tpot_s <= BETWEEN_TOKENS_S
    ]
    ttft_s = sorted(request.ttft_s for request in inside)
    tpot_s = sorted(request.tpot_s for request in inside if request.tpot_s is not None)
    return {
        "requests": len(requests),
        "failed": len(requests) - len(good),
        "window_s": window_s,
        "output_tokens": sum(arrived),
        "output_tokens_per_s": sum(arrived) / window_s,
        "goodput_tokens_per_s": sum(in_time) / window_s,
        **{f"ttft_p{share}_s": percentile(ttft_s, share) for share in (50, 99)},
        **{f"tpot_p{share}_s": percentile(tpot_s, share) if tpot_s else None for share in (50, 99)},
        "longest_gap_s": max(request.longest_gap_s for request in inside),
    }


def _steady(settings: Settings, loaded: _Loaded, prompt: int, output: int, streams: int) -> Figure:
    duration_s = settings.choose(12.0, 0.4)
    ramp_s = duration_s / 4
    loaded.clients.run(streams=streams, prompt_tokens=prompt, max_tokens=min(output, 16), requests=streams)
    with measure_energy(settings.device) as energy:
        requests = loaded.clients.run(streams=streams, prompt_tokens=prompt, max_tokens=output, duration_s=duration_s)
    figure = summarise_requests(requests, ramp_s, duration_s)
    total = sum(request.tokens for request in requests)
    return {
        "streams": streams,
        "prompt_tokens": prompt,
        "output_tokens_each": output,
        **figure,
        "tokens_per_joule": energy.per_joule(total),
        "energy_source": energy.source,
    }


def _most_streams(settings: Settings, loaded: _Loaded) -> Figure:
    """The most streams whose median time between tokens is at most 1/150 s, by halving: more streams are never quicker.

    None hold it where `streams` is 0; more may hold it where it is the most that were tried.
    """
    prompt, output = settings.choose(LENGTHS, DRY_LENGTHS)[0]
    duration_s, step = settings.choose((6.0, 8), (0.3, 1))
    most = max(settings.choose(STREAMS, DRY_STREAMS))
    tried: dict[int, float] = {}
    low, high = 0, most // step + 1
    while high - low > 1:
        middle = (low + high) // 2
        requests = loaded.clients.run(
            streams=middle * step, prompt_tokens=prompt, max_tokens=output, duration_s=duration_s
        )
        figure = summarise_requests(requests, duration_s / 4, duration_s)
        tried[middle * step] = figure["tpot_p50_s"] or 0.0
        low, high = (middle, high) if tried[middle * step] <= BETWEEN_TOKENS_S else (low, middle)
    return {
        "streams": low * step,
        "most_tried": most,
        "prompt_tokens": prompt,
        "output_tokens_each": output,
        "tpot_p50_s": tried.get(low * step),
        "tried": {str(streams): tried[streams] for streams in sorted(tried)},
    }


def _wave(settings: Settings, loaded: _Loaded, streams: int) -> Figure:
    prompt, output = settings.choose(LENGTHS, DRY_LENGTHS)[0]
    rates, firsts = [], []
    for index in range(_ROUNDS + 1):
        requests = loaded.clients.run(streams=streams, prompt_tokens=prompt, max_tokens=output, requests=streams)
        if any(request.error or request.tokens != output for request in requests):
            raise RuntimeError(f"a request failed: {next((one.error for one in requests if one.error), 'tokens')}")
        if index:  # the first warms up
            seconds = max(request.end_s for request in requests) - min(request.sent_s for request in requests)
            rates.append(len(requests) * output / seconds)
            firsts.append(statistics.median(request.ttft_s for request in requests))
    return {
        "streams": streams,
        "prompt_tokens": prompt,
        "output_tokens_each": output,
        "rates": rates,
        "output_tokens_per_s": statistics.median(rates),
        "ttft_p50_s": statistics.median(firsts),
    }


def _bare_wave(settings: Settings, model: str, precision: str, streams: int) -> Figure:
    """The wave by a plain loop over the runner: all prompts, then all steps. Nothing else shares the process."""
    prompt, output = settings.choose(LENGTHS, DRY_LENGTHS)[0]
    runner = make_runner(
        model,
        precision,
        settings.device,
        num_slots=streams,
        max_model_len=prompt + output + 16,
        is_fake=settings.is_fake,
    )
    rates, prefills_s = [], []
    for seed in range(_ROUNDS + 1):
        prompts = random_prompts(streams, prompt, SHAPES[model].vocab_size, seed)
        spent_s, first = prefill_s(runner, prompts)
        total_s = spent_s + decode_s(runner, first, prompt, output - 1)
        if seed:
            rates.append(streams * output / total_s)
            prefills_s.append(spent_s)
    return {
        "streams": streams,
        "prompt_tokens": prompt,
        "output_tokens_each": output,
        "rates": rates,
        "output_tokens_per_s": statistics.median(rates),
        "prefill_s": statistics.median(prefills_s),
    }


def _single(settings: Settings, loaded: _Loaded) -> Figure:
    prompt, output = settings.choose((128, 128), (8, 8))
    loaded.clients.run(streams=1, prompt_tokens=prompt, max_tokens=output, requests=2)
    requests = loaded.clients.run(streams=1, prompt_tokens=prompt, max_tokens=output, requests=5)
    failed = [request.error for request in requests if request.error]
    if failed:
        raise RuntimeError(failed[0])
    return {
        "prompt_tokens": prompt,
        "output_tokens_each": output,
        "seconds": [request.end_s - request.sent_s for request in requests],
        "median_s": statistics.median(request.end_s - request.sent_s for request in requests),
        "ttft_p50_s": statistics.median(request.ttft_s for request in requests),
    }


def _soak(settings: Settings, loaded: _Loaded, streams: int) -> Figure:
    prompt, output = settings.choose(LENGTHS, DRY_LENGTHS)[0]
    duration_s = min(settings.choose(_SOAK_S, _DRY_SOAK_S), max(1.0, settings.until_s - time.time() - 20))
    before = loaded.server.resident_bytes()
    with measure_energy(settings.device) as energy:
        requests = loaded.clients.run(streams=streams, prompt_tokens=prompt, max_tokens=output, duration_s=duration_s)
    after = loaded.server.resident_bytes()
    quarter_s = duration_s / 4
    early = summarise_requests(requests, quarter_s / 2, quarter_s * 2)
    late = summarise_requests(requests, quarter_s * 2, duration_s)
    return {
        "streams": streams,
        "prompt_tokens": prompt,
        "output_tokens_each": output,
        "duration_s": duration_s,
        **summarise_requests(requests, quarter_s / 2, duration_s),
        "early_tokens_per_s": early["output_tokens_per_s"],
        "late_tokens_per_s": late["output_tokens_per_s"],
        "resident_bytes_before": before,
        "resident_bytes_after": after,
        "tokens_per_joule": energy.per_joule(sum(request.tokens for request in requests)),
        "energy_source": energy.source,
    }
