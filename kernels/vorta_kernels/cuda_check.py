"""Runs every CUDA C++ kernel on a GPU against its reference: `python -m vorta_kernels.cuda_check`.

Prints one JSON object: the device, and of each kernel the cases and those that failed. Exits with 1 if any failed, and
with 2, saying why, where there is no GPU. `--small` is for `compute-sanitizer` (memcheck, racecheck), `--measure` adds
what the products take on matrices of a 7B model, and `--device cpu` runs the emulation, small, as a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from vorta_kernels.cuda import BuildError
from vorta_kernels.cuda_ops.batch_pack import batch_compact, batch_pack
from vorta_kernels.cuda_ops.block_copy import block_copy, block_swap
from vorta_kernels.cuda_ops.fp8_linear import fp8_linear
from vorta_kernels.cuda_ops.int4_linear import int4_linear, shuffle_int4
from vorta_kernels.cuda_ops.linear_bf16 import linear_bf16
from vorta_kernels.kv_cache import FP8, KvCache
from vorta_kernels.reference import batch_pack as reference_pack
from vorta_kernels.reference import block_copy as reference_copy
from vorta_kernels.reference import linear as reference
from vorta_kernels.reference.fp8 import quantise_rows

__all__ = ["main"]

Case = tuple[str, Callable[[], str | None]]
"""A name, and what says what is wrong."""

_TYPES = (torch.bfloat16, torch.float16)
_ROUNDING = 2**-8
"""Of a result in bfloat16, relative, with room for the order of the sum."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; `arguments` are those of the process if None."""
    parser = argparse.ArgumentParser(prog="python -m vorta_kernels.cuda_check", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="few and small shapes, for compute-sanitizer")
    parser.add_argument("--measure", action="store_true", help="time the products too; cuda only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("cuda_check: torch sees no GPU; --device cpu runs the emulation", file=sys.stderr)  # noqa: T201
        return 2
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    is_small = options.small or device.type == "cpu"
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "emulation",
        "torch": torch.__version__,
    }
    try:
        kernels, is_good = _run(device, is_small)
    except BuildError as error:
        print(f"cuda_check: {error}", file=sys.stderr)  # noqa: T201
        return 2
    result["kernels"] = kernels
    if options.measure and device.type == "cuda":
        result["measured"] = _measure(device)
    print(json.dumps(result, indent=2))  # noqa: T201
    return 0 if is_good else 1


def _run(device: torch.device, is_small: bool) -> tuple[dict[str, object], bool]:
    kernels: dict[str, object] = {}
    is_good = True
    for name, cases in (
        ("batch_pack", _pack_cases(device, is_small)),
        ("batch_compact", _compact_cases(device, is_small)),
        ("block_copy", _copy_cases(device, is_small)),
        ("fp8_linear", _fp8_cases(device, is_small)),
        ("linear_bf16", _linear_cases(device, is_small)),
        ("int4_linear", _int4_cases(device, is_small)),
    ):
        count, failed = 0, []
        for case, check in cases:
            count += 1
            try:
                wrong = check()
            except RuntimeError as error:
                wrong = str(error)
            if wrong:
                failed.append(f"{case}: {wrong}")
        kernels[name] = {"cases": count, "failed": failed}
        is_good &= not failed
    return kernels, is_good


def _differs(actual: torch.Tensor, expected: torch.Tensor) -> str | None:
    """What is wrong where the two must be equal bit for bit."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    actual, expected = actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    count = int((actual != expected).sum())
    return f"{count} of {actual.numel()} bytes differ" if count else None


def _is_far(actual: torch.Tensor, exact: torch.Tensor) -> str | None:
    """What is wrong where only rounding may separate the two."""
    if not actual.numel():
        return None
    allowed = exact.abs() * _ROUNDING + exact.abs().max() * 1e-4
    worst = ((actual.double() - exact).abs() / allowed.clamp_min(1e-30)).max().item()
    return None if worst <= 1 else f"error is {worst:.3g} times what is allowed"


def _settle(device: torch.device) -> None:
    """A product's matrix must be there before the kernel in front of it starts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pack_cases(device: torch.device, is_small: bool) -> Iterator[Case]:
    batches = {
        "empty": [],
        "one token": [1],
        "all empty": [0, 0, 0],
        "ragged": [3, 0, 1, 257, 0, 64, 1],
        "decode of 257": [1] * 257,
    }
    if not is_small:
        batches["prefill of 8192"] = [8192]
        batches["maximum"] = torch.randint(0, 4, (8192,)).tolist()
    for (name, lens), block_size in product(batches.items(), (16, 64)):

        def check(lens: list[int] = lens, block_size: int = block_size) -> str | None:
            query_lens = torch.tensor(lens, dtype=torch.int32, device=device)
            past_lens = torch.randint(0, 100, (len(lens),), dtype=torch.int32, device=device)
            max_blocks = (max(lens, default=0) + 100) // block_size + 1
            table = torch.randperm(len(lens) * max_blocks, device=device).int().view(len(lens), max_blocks)
            arguments = (query_lens, past_lens, table)
            padded = sum(lens) + 13
            actual = batch_pack(*arguments, block_size=block_size, num_tokens_padded=padded)
            expected = reference_pack.batch_pack(*arguments, block_size=block_size, num_tokens_padded=padded)
            for field in ("cu_query_lens", "positions", "slots", "sequence"):
                if wrong := _differs(getattr(actual, field), getattr(expected, field)):
                    return f"{field}: {wrong}"
            return None

        yield f"{name}, block {block_size}", check


def _compact_cases(device: torch.device, is_small: bool) -> Iterator[Case]:
    for num_rows, width in product((1, 37), (0, 1, 3, 4, 1000, 1001) if is_small else (1, 4, 1001, 4096, 151_936)):

        def check(num_rows: int = num_rows, width: int = width) -> str | None:
            state = torch.randint(-9, 9, (num_rows, width), dtype=torch.int32, device=device)
            rows = torch.randint(-1, num_rows, (29,), dtype=torch.int32, device=device)
            return _differs(batch_compact(state, rows), reference_pack.batch_compact(state, rows))

        yield f"{num_rows} x {width}", check


def _copy_cases(device: torch.device, is_small: bool) -> Iterator[Case]:
    layers, blocks = (2, 7) if is_small else (32, 64)
    for dtype, head_dim in product((torch.bfloat16, FP8), (8, 20) if is_small else (128, 100)):

        def cache(dtype: torch.dtype = dtype, head_dim: int = head_dim, where: str = str(device)) -> list[torch.Tensor]:
            tensors = KvCache(
                num_layers=layers,
                num_blocks=blocks,
                num_kv_heads=3,
                block_size=16,
                head_dim=head_dim,
                dtype=dtype,
                device=where,
            ).tensors
            for tensor in tensors:
                raw = tensor.view(torch.uint8)
                raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8))
            return tensors

        def check(cache: Callable[..., list[torch.Tensor]] = cache) -> str | None:
            tensors = cache()
            expected = [tensor.clone() for tensor in tensors]
            order = torch.randperm(blocks, device=device).int()
            pairs = torch.stack([order[: blocks // 2], order[blocks // 2 : blocks // 2 * 2]], 1).contiguous()
            block_copy(tensors, torch.cat([pairs, torch.full((1, 2), -1, dtype=torch.int32, device=device)]))
            reference_copy.block_copy(expected, pairs)
            return next(filter(None, map(_differs, tensors, expected)), None)

        def check_swap(cache: Callable[..., list[torch.Tensor]] = cache) -> str | None:
            here, there = cache(), cache(where="cpu")
            if device.type == "cuda":
                there = [tensor.pin_memory() for tensor in there]
            block_swap(here, there, [(0, 1), (3, 2)])
            block_swap(there, here, [(1, 4), (2, 5)])
            for tensor in here:
                raw = tensor.view(torch.uint8)
                for source, target in ((0, 4), (3, 5)):
                    if wrong := _differs(raw[:, target], raw[:, source]):
                        return wrong
            return None

        yield f"{dtype}, head {head_dim}", check
        yield f"{dtype}, head {head_dim}, swap", check_swap


_SMALL_SHAPES = ((17, 96), (100, 672))
_SHAPES = ((1, 64), (1000, 4096), (4096, 4096), (4099, 11008), (12_288, 4096), (22_016, 4096), (32_000, 1056))


def _fp8_cases(device: torch.device, is_small: bool) -> Iterator[Case]:
    rows = (0, 1, 3, 9, 17) if is_small else (1, 2, 3, 4, 8, 9, 16, 40)
    for shape, num_rows, dtype in product(_SMALL_SHAPES if is_small else _SHAPES, rows, _TYPES):

        def check(shape: tuple[int, int] = shape, num_rows: int = num_rows, dtype: torch.dtype = dtype) -> str | None:
            x, x_scale = quantise_rows(torch.randn(num_rows, shape[1], device=device))
            weight = reference.quantise_fp8(torch.randn(*shape, device=device))
            exact = reference.fp8_linear(x, x_scale, weight, torch.float64)
            _settle(device)
            return _is_far(fp8_linear(x, x_scale, weight, dtype), exact)

        yield f"{num_rows} x {shape}, {dtype}", check


def _linear_cases(device: torch.device, is_small: bool) -> Iterator[Case]:
    rows = (0, 1, 3, 9, 17) if is_small else (1, 2, 4, 8, 16, 40)
    for shape, num_rows, dtype in product(_SMALL_SHAPES if is_small else _SHAPES, rows, _TYPES):

        def check(shape: tuple[int, int] = shape, num_rows: int = num_rows, dtype: torch.dtype = dtype) -> str | None:
            x = torch.randn(num_rows, shape[1], device=device).to(dtype)
            weight = torch.randn(*shape, device=device).to(dtype)
            _settle(device)
            return _is_far(linear_bf16(x, weight), x.double() @ weight.double().T)

        yield f"{num_rows} x {shape}, {dtype}", check


def _int4_cases(device: torch.device, is_small: bool) -> Iterator[Case]:
    rows = (0, 1, 3, 9, 17) if is_small else (1, 2, 4, 8, 16, 17, 32, 70)
    for shape, num_rows, dtype in product(_SMALL_SHAPES if is_small else _SHAPES, rows, _TYPES):
        for group in (32, 64, 128):
            if shape[1] % group:
                continue

            def check(
                shape: tuple[int, int] = shape, num_rows: int = num_rows, dtype: torch.dtype = dtype, group: int = group
            ) -> str | None:
                x = torch.randn(num_rows, shape[1], device=device).to(dtype)
                packed = torch.randint(-(1 << 31), 1 << 31, (shape[0], shape[1] // 8), device=device).int()
                scale = torch.rand(shape[0], shape[1] // group, device=device).to(dtype)
                weight = reference.Int4Weight(packed=packed, scale=scale, group=group)
                shuffled = shuffle_int4(weight)
                _settle(device)
                return _is_far(int4_linear(x, shuffled), reference.int4_linear(x.double(), weight))

            yield f"{num_rows} x {shape}, group {group}, {dtype}", check


def _measure(device: torch.device) -> list[dict[str, object]]:
    """Median microseconds of each product by device events, and the bytes of its matrix that it read in a second; so
    many matrices in turn that none is still in L2."""
    results: list[dict[str, object]] = []
    for num_outputs, num_inputs in ((4096, 4096), (12_288, 4096), (22_016, 4096), (4096, 11_008)):
        count = max(2, -(-(256 << 20) // (num_outputs * num_inputs // 2)))
        dense = [
            torch.randn(num_outputs, num_inputs, dtype=torch.bfloat16, device=device) for _ in range(-(-count // 4))
        ]
        quantised = [reference.quantise_fp8(dense[0]) for _ in range(-(-count // 2))]
        packed = shuffle_int4(reference.quantise_int4(dense[0], 128, torch.bfloat16))
        shuffled = [replace(packed, packed=packed.packed.clone()) for _ in range(count)]
        _settle(device)
        for num_rows in (1, 2, 4, 8, 16, 32):
            x = torch.randn(num_rows, num_inputs, dtype=torch.bfloat16, device=device)
            x8, x_scale = quantise_rows(x)
            out = torch.empty(num_rows, num_outputs, dtype=torch.bfloat16, device=device)
            size = num_outputs * num_inputs
            products: list[tuple[str, int, list[Callable[[], object]]]] = [
                ("linear_bf16", 2 * size, [partial(linear_bf16, x, w, out=out) for w in dense]),
                ("fp8_linear", size, [partial(fp8_linear, x8, x_scale, w, x.dtype, out=out) for w in quantised]),
                ("int4_linear", size // 2 + size // 64, [partial(int4_linear, x, w, out=out) for w in shuffled]),
            ]
            for name, num_bytes, calls in products:
                microseconds = _median_us(calls)
                results.append(
                    {
                        "kernel": name,
                        "rows": num_rows,
                        "matrix": [num_outputs, num_inputs],
                        "us": round(microseconds, 2),
                        "gb_per_s": round(num_bytes / microseconds / 1e3),
                    }
                )
    return results


def _median_us(calls: list[Callable[[], object]], repeats: int = 9) -> float:
    """Median time of one call. All are captured once in a graph, so that the host does not slow them down."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[repeats // 2]


if __name__ == "__main__":
    sys.exit(main())
