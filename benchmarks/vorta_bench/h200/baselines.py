"""The same lengths on the same card by others, each in a process of its own.

B0  transformers `generate`, bfloat16, SDPA, dynamic cache, static batching: what one writes without a server.
B1  the same with a static cache and the compiled forward that `generate` makes of it.
B2  vLLM, bfloat16, its defaults.   B3  vLLM with fp8 weights and fp8 K and V.

A decode rate is (tokens - 1) * batch over the time that generating them took beyond the time of the first: prompts of
`context` tokens, all rows of the same length.
"""

from __future__ import annotations

import functools
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vorta_bench.h200.checkpoint import write_config
from vorta_bench.h200.energy import measure_energy
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip, once
from vorta_bench.h200.workload import DRY_LENGTHS, LENGTHS

__all__ = ["BASELINES", "MATCHED", "batch_key", "cells", "decode_key", "parts"]

BASELINES = {
    "B0": "transformers generate, bf16, static batch",
    "B1": "transformers, bf16, static cache and torch.compile",
    "B2": "vLLM bf16",
    "B3": "vLLM fp8, fp8 KV",
}
"""Names by key."""
MATCHED = {"B0": "bf16", "B1": "bf16", "B2": "bf16", "B3": "fp8"}
"""The precision of ours that each is compared with at matched precision."""

_CONTEXT, _DRY_CONTEXT = 512, 16
_NEW_TOKENS, _DRY_NEW_TOKENS = 65, 4
_BATCHES, _DRY_BATCHES = (1, 32, 256, 128, 8), (1, 2)

Generate = Callable[[Any, int], None]
"""Generates this many tokens after each row of int64 [batch, num_tokens], greedily, and waits for the device."""


def decode_key(model: str, baseline: str, batch: int, context: int) -> str:
    """The key of a decode figure."""
    return f"{model}/{baseline}/decode {batch}x{context}"


def batch_key(model: str, baseline: str, prompt: int, output: int, batch: int) -> str:
    """The key of a figure of whole requests."""
    return f"{model}/{baseline}/{prompt}+{output} x{batch}"


def parts(settings: Settings) -> Sequence[str]:
    """B0 of the first model first: it is the headline."""
    return [f"{model}/{baseline}" for model in settings.models for baseline in BASELINES]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """Decode at several batches, then whole batches of requests."""
    model, baseline = part.split("/")
    context = settings.choose(_CONTEXT, _DRY_CONTEXT)
    makers = {"B0": _transformers, "B1": _transformers_static, "B2": _vllm, "B3": _vllm_fp8}
    generate = once(lambda: makers[baseline](settings, model))
    found = [
        Cell(
            decode_key(model, baseline, batch, context),
            lambda batch=batch: _decode(settings, generate(), model, batch, context),  # type: ignore[misc]
            settings.choose(120 if baseline == "B1" else 60, 5),
        )
        for batch in settings.choose(_BATCHES, _DRY_BATCHES)
    ]
    for prompt, output in settings.choose(LENGTHS, DRY_LENGTHS):
        for batch in settings.choose((32, 128, 256), (2,)):
            found.append(
                Cell(
                    batch_key(model, baseline, prompt, output, batch),
                    lambda a=(prompt, output, batch): _batch(settings, generate(), model, *a),  # type: ignore[misc]
                    settings.choose(150 if baseline == "B1" else 90, 5),
                )
            )
    return found


def _decode(settings: Settings, generate: Generate, model: str, batch: int, context: int) -> Figure:
    num_tokens = settings.choose(_NEW_TOKENS, _DRY_NEW_TOKENS)
    prompts = functools.partial(_prompts, settings, model, batch, context)
    generate(prompts(0), num_tokens)  # warms up: compiles, allocates
    generate(prompts(1), 1)
    firsts_s, alls_s, joules = [], [], 0.0
    source = "none"
    for seed in range(2, 5):
        firsts_s.append(_timed(generate, prompts(seed), 1))
        with measure_energy(settings.device) as energy:
            alls_s.append(_timed(generate, prompts(10 + seed), num_tokens))
        joules, source = joules + (energy.joules or 0.0), energy.source
    first_s, all_s = statistics.median(firsts_s), statistics.median(alls_s)
    step_s = (all_s - first_s) / (num_tokens - 1)
    if step_s <= 0:
        raise RuntimeError("more tokens took no longer than one: the times are too short to be told apart")
    return {
        "batch": batch,
        "context": context,
        "new_tokens": num_tokens,
        "first_s": first_s,
        "firsts_s": firsts_s,
        "alls_s": alls_s,
        "step_s": step_s,
        "tokens_per_s": batch / step_s,
        "tokens_per_s_per_stream": 1 / step_s,
        # Its prefill is part of its energy.
        "tokens_per_joule_with_prefill": batch * num_tokens * len(alls_s) / joules if joules else None,
        "energy_source": source,
        "version": _version(generate),
    }


def _batch(settings: Settings, generate: Generate, model: str, prompt: int, output: int, batch: int) -> Figure:
    generate(_prompts(settings, model, batch, prompt, 20), output if settings.is_dry else 2)
    with measure_energy(settings.device) as energy:
        seconds = _timed(generate, _prompts(settings, model, batch, prompt, 21), output)
    return {
        "batch": batch,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "seconds": seconds,
        "output_tokens_per_s": batch * output / seconds,
        "tokens_per_joule": energy.per_joule(batch * output),
        "energy_source": energy.source,
        "version": _version(generate),
    }


def _prompts(settings: Settings, model: str, batch: int, num_tokens: int, seed: int) -> Any:
    from vorta_bench.h200.drive import random_prompts

    return random_prompts(batch, num_tokens, SHAPES[model].vocab_size, seed)


def _timed(generate: Generate, prompts: Any, num_tokens: int) -> float:
    begin_s = time.perf_counter()
    generate(prompts, num_tokens)
    return time.perf_counter() - begin_s


def _version(generate: Any) -> str:
    return str(getattr(generate, "version", "unknown"))


def _transformers(settings: Settings, model: str, cache: str = "") -> Generate:
    try:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig
    except ImportError as error:
        raise Skip(f"{error.name} is not installed") from error
    values = {
        name: value for name, value in SHAPES[model].config().items() if name not in ("architectures", "torch_dtype")
    }
    torch.manual_seed(0)
    with torch.device(settings.device):
        network = AutoModelForCausalLM.from_config(
            LlamaConfig(**values), dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
    network.generation_config.eos_token_id = None

    def generate(prompts: Any, num_tokens: int) -> None:
        ids = torch.as_tensor(prompts, device=settings.device)
        options: dict[str, Any] = {"cache_implementation": cache} if cache else {}
        made = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        if made.shape[1] != ids.shape[1] + num_tokens:
            raise RuntimeError(f"generate made {made.shape[1] - ids.shape[1]} tokens, not {num_tokens}")
        if settings.device == "cuda":
            torch.cuda.synchronize()

    generate.version = f"transformers {importlib.metadata.version('transformers')}"  # type: ignore[attr-defined]
    return generate


def _transformers_static(settings: Settings, model: str) -> Generate:
    return _transformers(settings, model, "static")


def _vllm(settings: Settings, model: str, **options: Any) -> Generate:
    if settings.is_dry:
        raise Skip("vLLM is not run without a GPU")
    try:
        from vllm import LLM, SamplingParams
    except Exception as error:
        raise Skip(f"vLLM cannot be imported: {error}") from error
    shape = SHAPES[model]
    engine = LLM(
        model=str(write_config(settings.work / f"{model}-config", shape)),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=min(1024, shape.max_model_len),
        **options,
    )

    def generate(prompts: Any, num_tokens: int) -> None:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": row} for row in prompts.tolist()]
        made = engine.generate(asked, sampling, use_tqdm=False)
        if any(len(one.outputs[0].token_ids) != num_tokens for one in made):
            raise RuntimeError(f"vLLM did not make {num_tokens} tokens of every row")

    generate.version = f"vllm {importlib.metadata.version('vllm')}"  # type: ignore[attr-defined]
    return generate


def _vllm_fp8(settings: Settings, model: str) -> Generate:
    return _vllm(settings, model, quantization="fp8", kv_cache_dtype="fp8")
