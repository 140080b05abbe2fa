"""Each kernel at a model's shapes: bytes/s and FLOP/s, and their share of what the card can do.

Measured are the operations that the runner calls, `vorta_kernels.ops`; on a CPU they are the references, which are slow
by design. Buffers rotate over more bytes than the L2 cache holds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vorta_bench.h200.ceilings import known_ceilings
from vorta_bench.h200.measuring import measure_calls
from vorta_bench.h200.model_shape import SHAPES, ModelShape
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts"]

_ROWS, _DRY_ROWS = (1, 32, 256, 2048), (1, 4)
_BATCHES, _DRY_BATCHES = (1, 32, 256), (1, 2)
_PROMPTS, _DRY_PROMPTS = (512, 2048), (16,)
_SKINNY, _DRY_SKINNY = (1, 8, 16, 32, 256), (1, 4)
_CONTEXT, _DRY_CONTEXT = 512, 24
_BLOCK_SIZE = 64
_ROTATED_BYTES = 256 << 20
_INT4_GROUP, _DRY_INT4_GROUP = 128, 32

Op = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Copies of a call with buffers of their own, and what one call moves (bytes) and computes (operations)."""

    calls: list[Callable[[], Any]]
    moved_bytes: float
    operations: float = 0.0
    products: str = "bf16"


def parts(settings: Settings) -> Sequence[str]:
    """One process a model: a kernel that dies takes only its own cell along."""
    return list(settings.models)


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """Operations by name, then by size."""
    shape = SHAPES[part]
    found: list[Cell] = []

    def add(name: str, make: Callable[[], _Work]) -> None:
        found.append(Cell(f"{part}/{name}", lambda: _measure(settings, make), settings.choose(15, 5)))

    for batch in settings.choose(_BATCHES, _DRY_BATCHES):
        context = settings.choose(_CONTEXT, _DRY_CONTEXT)
        for kv in ("bf16", "fp8"):
            add(
                f"paged_decode {kv} {batch}x{context}",
                lambda a=(batch, context, kv): _paged_decode(settings, shape, *a),  # type: ignore[misc]
            )
    for tokens in settings.choose(_PROMPTS, _DRY_PROMPTS):
        for kv in ("bf16", "fp8"):
            add(
                f"paged_prefill {kv} {tokens}",
                lambda a=(tokens, kv): _paged_prefill(settings, shape, *a),  # type: ignore[misc]
            )
    for rows in settings.choose(_SKINNY, _DRY_SKINNY):
        for name in shape.matrices:
            for kind in ("bf16", "fp8", "int4"):
                add(
                    f"{kind}_linear {name} {rows}",
                    lambda a=(kind, name, rows): _linear(settings, shape, *a),  # type: ignore[misc]
                )
    for rows in settings.choose(_ROWS, _DRY_ROWS):
        for op in ("rms_norm", "rms_norm_fp8"):
            add(f"{op} {rows}", lambda a=(op, rows): _rms_norm(settings, shape, *a))  # type: ignore[misc]
        for op in ("silu_mul", "silu_mul_fp8"):
            add(f"{op} {rows}", lambda a=(op, rows): _silu_mul(settings, shape, *a))  # type: ignore[misc]
        for kv in ("bf16", "fp8"):
            add(f"rope_kv {kv} {rows}", lambda a=(rows, kv): _rope_kv(settings, shape, *a))  # type: ignore[misc]
    for batch in settings.choose(_BATCHES, _DRY_BATCHES):
        add(f"sample {batch}", lambda batch=batch: _sample(settings, shape, batch))  # type: ignore[misc]
    return found


def _measure(settings: Settings, make: Callable[[], _Work]) -> Figure:
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise Skip("torch is not installed") from error
    work = make()
    rounds = 1 if len(work.calls) > 4 else 4
    timing = measure_calls(
        work.calls, settings.device, windows=settings.choose(15, 2), rounds=settings.choose(rounds, 1)
    )
    figure: Figure = {
        "median_s": timing.median_s,
        "least_s": timing.least_s,
        "is_graph": timing.is_graph,
        "moved_bytes": work.moved_bytes,
        "bytes_per_s": work.moved_bytes / timing.median_s,
        "flop_per_s": work.operations / timing.median_s,
    }
    ceilings = known_ceilings(settings)
    if ceilings is not None:
        rate = ceilings.fp8 if work.products == "fp8" else ceilings.bf16
        figure["share_of_bandwidth"] = figure["bytes_per_s"] / ceilings.bandwidth
        figure["share_of_rate"] = figure["flop_per_s"] / rate
        # What the operation cannot beat: the slower of its bytes and its operations.
        least_s = max(work.moved_bytes / ceilings.bandwidth, work.operations / rate)
        figure["share_of_ceiling"] = least_s / timing.median_s
    return figure


def _op(name: str) -> Op:
    try:
        found: Op = getattr(importlib.import_module("vorta_kernels.ops"), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise Skip(f"vorta_kernels.ops has no {name}: {error}") from error
    return found


def _copies(settings: Settings, num_bytes: float) -> int:
    return 1 if settings.is_dry else max(1, min(256, int(-(-_ROTATED_BYTES // max(1, num_bytes)))))


def _randn(settings: Settings, *sizes: int) -> Any:
    import torch

    return torch.randn(*sizes, device=settings.device).bfloat16()


def _rms_norm(settings: Settings, shape: ModelShape, name: str, rows: int) -> _Work:
    op = _op(name)
    # In: x and the residual. Out: the sum, and the normalised rows with their scales.
    moved = rows * shape.hidden_size * (6 + (1 if name.endswith("fp8") else 2))
    calls: list[Callable[[], Any]] = []
    weight = _randn(settings, shape.hidden_size)
    for _ in range(_copies(settings, moved)):
        x, residual = (_randn(settings, rows, shape.hidden_size) for _ in range(2))
        calls.append(lambda x=x, residual=residual: op(x, weight, 1e-5, residual))  # type: ignore[misc]
    return _Work(calls=calls, moved_bytes=moved)


def _silu_mul(settings: Settings, shape: ModelShape, name: str, rows: int) -> _Work:
    op = _op(name)
    moved = rows * shape.intermediate_size * (4 + (1 if name.endswith("fp8") else 2))
    calls: list[Callable[[], Any]] = []
    for _ in range(_copies(settings, moved)):
        gate_up = _randn(settings, rows, 2 * shape.intermediate_size)
        calls.append(lambda gate_up=gate_up: op(gate_up))  # type: ignore[misc]
    return _Work(calls=calls, moved_bytes=moved)


def _rope_kv(settings: Settings, shape: ModelShape, rows: int, kv: str) -> _Work:
    import torch

    op = _op("rope_kv")
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    kv_width = 2 * shape.num_kv_heads * shape.head_dim
    moved = rows * (2 * width + 2 * shape.num_heads * shape.head_dim + kv_width * (1 if kv == "fp8" else 2))
    cache = _cache(settings, shape, -(-rows // _BLOCK_SIZE), kv)
    cos_sin = torch.rand(max(rows, 16), 2, shape.head_dim // 2, device=settings.device)
    positions = torch.arange(rows, dtype=torch.int32, device=settings.device)
    calls: list[Callable[[], Any]] = []
    for _ in range(_copies(settings, moved)):
        qkv = _randn(settings, rows, width)
        calls.append(
            lambda qkv=qkv: op(  # type: ignore[misc]
                qkv, cos_sin, positions, positions, cache.layer(0), num_heads=shape.num_heads
            )
        )
    return _Work(calls=calls, moved_bytes=moved)


def _cache(settings: Settings, shape: ModelShape, num_blocks: int, kv: str, num_layers: int = 1) -> Any:
    """Random K and V."""
    import torch

    from vorta_kernels.kv_cache import FP8, KvCache

    cache = KvCache(
        num_layers=num_layers,
        num_blocks=num_blocks,
        num_kv_heads=shape.num_kv_heads,
        block_size=_BLOCK_SIZE,
        head_dim=shape.head_dim,
        dtype=FP8 if kv == "fp8" else torch.bfloat16,
        device=settings.device,
    )
    for tensor in cache.tensors:
        # By layer: what is drawn is in 32 bits first.
        for layer in tensor:
            drawn = torch.randn(layer.shape, device=settings.device)
            layer.copy_(drawn.abs() / 100 if tensor.dtype == torch.float32 else drawn)
    return cache


def _paged_decode(settings: Settings, shape: ModelShape, batch: int, context: int, kv: str) -> _Work:
    import torch

    op = _op("paged_decode")
    kv_bytes = (
        batch * context * 2 * shape.num_kv_heads * (shape.head_dim * (1 if kv == "fp8" else 2) + 4 * (kv == "fp8"))
    )
    moved = kv_bytes + 4 * batch * shape.num_heads * shape.head_dim
    num_layers = _copies(settings, kv_bytes)
    table, num_blocks = _block_table(settings, batch, context)
    cache = _cache(settings, shape, num_blocks, kv, num_layers)
    seq_lens = torch.full((batch,), context, dtype=torch.int32, device=settings.device)
    query = _randn(settings, batch, shape.num_heads, shape.head_dim)
    scale = shape.head_dim**-0.5
    calls: list[Callable[[], Any]] = []
    for index in range(num_layers):
        layer = cache.layer(index)
        calls.append(lambda layer=layer: op(query, layer, table, seq_lens, scale=scale))  # type: ignore[misc]
    operations = 4.0 * batch * context * shape.num_heads * shape.head_dim
    return _Work(calls=calls, moved_bytes=moved, operations=operations)


def _paged_prefill(settings: Settings, shape: ModelShape, tokens: int, kv: str) -> _Work:
    import torch

    op = _op("paged_prefill")
    table, num_blocks = _block_table(settings, 1, tokens)
    cache = _cache(settings, shape, num_blocks, kv)
    seq_lens = torch.full((1,), tokens, dtype=torch.int32, device=settings.device)
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=settings.device)
    query = _randn(settings, tokens, shape.num_heads, shape.head_dim)
    scale = shape.head_dim**-0.5
    width = 1 if kv == "fp8" else 2
    return _Work(
        calls=[lambda: op(query, cache.layer(0), table, seq_lens, starts, scale=scale)],
        moved_bytes=2.0 * tokens * shape.head_dim * (2 * shape.num_heads + shape.num_kv_heads * width),
        operations=2.0 * tokens**2 * shape.num_heads * shape.head_dim,
    )


def _block_table(settings: Settings, batch: int, context: int) -> tuple[Any, int]:
    """Blocks in no order, as they are after a while of serving."""
    import torch

    each = -(-context // _BLOCK_SIZE)
    order = torch.randperm(batch * each, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    return order.view(batch, each).to(settings.device), batch * each


def _linear(settings: Settings, shape: ModelShape, kind: str, name: str, rows: int) -> _Work:
    import torch

    from vorta_kernels.reference.linear import quantise_fp8, quantise_int4

    op = _op("plain_linear" if kind == "bf16" else f"{kind}_linear")
    num_outputs, num_inputs = shape.matrices[name]
    group = settings.choose(_INT4_GROUP, _DRY_INT4_GROUP)
    width = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 2 / group}[kind]
    weight_bytes = num_outputs * num_inputs * width
    row_bytes = num_inputs * (1 if kind == "fp8" else 2) + 2 * num_outputs
    calls: list[Callable[[], Any]] = []
    for _ in range(_copies(settings, weight_bytes)):
        x, matrix = _randn(settings, rows, num_inputs), _randn(settings, num_outputs, num_inputs)
        if kind == "bf16":
            calls.append(lambda x=x, matrix=matrix: op(x, matrix))  # type: ignore[misc]
        elif kind == "int4":
            packed = quantise_int4(matrix, group, torch.bfloat16)
            shuffled = _op("shuffle_int4")(packed)
            calls.append(lambda x=x, packed=packed, shuffled=shuffled: op(x, packed, shuffled))  # type: ignore[misc]
        else:
            quantised = quantise_fp8(matrix)
            scale, values = torch.rand(rows, device=settings.device), x.to(torch.float8_e4m3fn)
            calls.append(
                lambda values=values, scale=scale, quantised=quantised: op(  # type: ignore[misc]
                    values, scale, quantised, torch.bfloat16
                )
            )
    return _Work(
        calls=calls,
        moved_bytes=weight_bytes + rows * row_bytes,
        operations=2.0 * rows * num_inputs * num_outputs,
        products="fp8" if kind == "fp8" else "bf16",
    )


def _sample(settings: Settings, shape: ModelShape, batch: int) -> _Work:
    """Temperature, top-k and top-p of every row; logits in 32 bits, read once."""
    import torch

    from vorta_kernels.grid import SampleCase

    op = _op("sample")
    moved = 4 * batch * shape.vocab_size
    case = SampleCase(
        num_rows=batch, vocab_size=shape.vocab_size, temperatures=(0.8,), top_ks=(50,), top_ps=(0.95,), min_ps=(0.0,)
    )
    calls: list[Callable[[], Any]] = []
    for _ in range(min(_copies(settings, moved), 16)):
        inputs = case.inputs(torch.device(settings.device))
        calls.append(lambda inputs=inputs: op(*inputs.args, **inputs.kwargs))  # type: ignore[misc]
    return _Work(calls=calls, moved_bytes=moved)
