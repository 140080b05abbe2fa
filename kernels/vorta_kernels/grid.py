"""The shapes, types and tolerances that every implementation of an operation is checked on against its reference.

The tests run the small cases on the interpreter; on a GPU the same cases, and the large ones, check the compiled
kernels. Inputs come from a seeded generator on the CPU, so they are the same on every device.

Caches start as NaN and block tables point at a block of NaN where nothing may be read, so that reading too much shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch

from vorta_kernels.kv_cache import FP8, KvCache, KvLayer
from vorta_kernels.reference import fp8 as fp8_rows
from vorta_kernels.reference.linear import quantise_fp8, quantise_int4
from vorta_kernels.reference.sample import SampleOutput, SamplingColumns

__all__ = [
    "AHEAD",
    "CASES",
    "TOLERANCES",
    "Case",
    "DecodeCase",
    "Fp8LinearCase",
    "Inputs",
    "Int4LinearCase",
    "PrefillCase",
    "QuantiseCase",
    "RmsNormCase",
    "RopeKvCase",
    "SampleCase",
    "SiluMulCase",
    "Tolerance",
    "VerifyCase",
    "mismatches",
    "run",
]

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """|got - expected| may be absolute + relative * |expected|."""

    absolute: float
    relative: float


TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    F32: Tolerance(absolute=2e-5, relative=2e-5),
    F16: Tolerance(absolute=2e-3, relative=2e-3),
    BF16: Tolerance(absolute=1.6e-2, relative=1.6e-2),
}
"""By the activations' type: two to four units in the last place, as sums in float32 come in another order."""

FP8_DIFFERING = 0.02
"""The share of float8 values that may be the neighbouring one: those that lie at a border of rounding."""


@dataclass(slots=True)
class Inputs:
    """A call, and what it changes in place, by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    changed: dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of an operation.

    Attributes:
        is_large: Only for real devices.
    """

    op: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    is_large: bool = False

    @property
    def id(self) -> str:
        """A name made of the values that are not the defaults."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "is_large" and value != field.default:
                text = str(value).removeprefix("torch.").replace(" ", "")
                parts.append(f"{field.name}={text}")
        return ",".join(parts)

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs."""
        return TOLERANCES[F32]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments; the same ones each time."""
        raise NotImplementedError


def run(case: Case, function: Callable[..., Any], device: torch.device) -> dict[str, torch.Tensor]:
    """Calls an implementation on a case's inputs, with the case's `splits` if it takes any. Returns its results and
    what it changed, by name, on the CPU."""
    inputs = case.inputs(device)
    if isinstance(case, DecodeCase) and "splits" in inspect.signature(function).parameters:
        inputs.kwargs["splits"] = case.splits
    result = function(*inputs.args, **inputs.kwargs)
    if isinstance(result, SampleOutput):
        result = tuple(tensor for tensor in asdict(result).values() if tensor is not None)
    elif isinstance(result, torch.Tensor):
        result = (result,)
    named = dict(zip(case.outputs, result, strict=False)) | inputs.changed
    return {name: tensor.cpu() for name, tensor in named.items()}


def mismatches(case: Case, got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """What differs by more than the case's tolerance, in words; integers must be equal."""
    found = [] if got.keys() == expected.keys() else [f"results {sorted(got)} instead of {sorted(expected)}"]
    for name in got.keys() & expected.keys():
        ours, theirs = got[name], expected[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            found.append(f"{name} is {ours.dtype} {list(ours.shape)} instead of {theirs.dtype} {list(theirs.shape)}")
        elif theirs.dtype == FP8:
            found += _fp8_mismatches(name, ours, theirs)
        elif theirs.dtype.is_floating_point:
            error = (ours.double() - theirs.double()).abs()
            allowed = case.tolerance.absolute + case.tolerance.relative * theirs.double().abs()
            wrong = ~((error <= allowed) | (ours == theirs) | (ours.isnan() & theirs.isnan()))
            if wrong.any():
                found.append(f"{name}: {int(wrong.sum())} of {wrong.numel()} differ, by up to {error[wrong].max():.3g}")
        elif not torch.equal(ours, theirs):
            found.append(f"{name}: {int((ours != theirs).sum())} of {ours.numel()} differ")
    return found


def _fp8_mismatches(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> list[str]:
    """Compares as numbers of steps from 0."""
    steps = [tensor.view(torch.uint8).to(torch.int16) for tensor in (ours, theirs)]
    steps = [torch.where(code < 128, code, 128 - code) for code in steps]
    distance = (steps[0] - steps[1]).abs()
    allowed = max(2.0, FP8_DIFFERING * distance.numel())
    if distance.numel() and (distance.max() > 1 or distance.sum() > allowed):
        return [f"{name}: {int((distance > 0).sum())} of {distance.numel()} differ, by up to {distance.max()} steps"]
    return []


def _generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, case.id)) + len(case.id))


@dataclass(frozen=True, kw_only=True)
class RmsNormCase(Case):
    """`rms_norm` or `rms_norm_fp8`."""

    num_rows: int
    hidden_size: int
    dtype: torch.dtype = BF16
    has_residual: bool = True
    is_fp8: bool = False
    is_zero: bool = False

    @property
    def op(self) -> str:  # type: ignore[override]
        """The function."""
        return "rms_norm_fp8" if self.is_fp8 else "rms_norm"

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Their names."""
        return ("values", "scale", "residual") if self.is_fp8 else ("values", "residual")

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs."""
        return TOLERANCES[self.dtype]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments."""
        generator = _generator(self)
        shape = (self.num_rows, self.hidden_size)
        x, residual = (torch.randn(shape, generator=generator).mul(1 - self.is_zero).to(self.dtype) for _ in range(2))
        weight = (1 + 0.1 * torch.randn(self.hidden_size, generator=generator)).to(self.dtype)
        args = (x.to(device), weight.to(device), 1e-6, residual.to(device) if self.has_residual else None)
        return Inputs(args, {}, {})


@dataclass(frozen=True, kw_only=True)
class QuantiseCase(Case):
    """`quantise_rows`."""

    num_rows: int
    width: int
    dtype: torch.dtype = BF16

    op = "quantise_rows"
    outputs = ("values", "scale")

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments; the last row is 0."""
        rows = torch.randn(self.num_rows, self.width, generator=_generator(self))
        rows[-1:] = 0
        return Inputs((rows.to(self.dtype).to(device),), {}, {})


@dataclass(frozen=True, kw_only=True)
class SiluMulCase(Case):
    """`silu_mul` or `silu_mul_fp8`."""

    num_rows: int
    width: int
    dtype: torch.dtype = BF16
    is_fp8: bool = False

    @property
    def op(self) -> str:  # type: ignore[override]
        """The function."""
        return "silu_mul_fp8" if self.is_fp8 else "silu_mul"

    outputs = ("values", "scale")

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs."""
        return TOLERANCES[self.dtype]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments; the first row has gates far from 0."""
        gate_up = 2 * torch.randn(self.num_rows, 2 * self.width, generator=_generator(self))
        gate_up[:1] *= 20
        return Inputs((gate_up.to(self.dtype).to(device),), {}, {})


def _empty_cache(
    num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> KvLayer:
    """The second of two layers, all NaN."""
    cache = KvCache(
        num_layers=2,
        num_blocks=num_blocks,
        num_kv_heads=num_kv_heads,
        block_size=block_size,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
    )
    for tensor in cache.tensors:
        if tensor.dtype == FP8:
            tensor.view(torch.uint8).fill_(0x7F)
        else:
            tensor.fill_(float("nan"))
    return cache.layer(1)


def _changed(cache: KvLayer) -> dict[str, torch.Tensor]:
    named = {name: getattr(cache, name) for name in ("key", "value", "key_scale", "value_scale")}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True)
class RopeKvCase(Case):
    """`rope_kv`; every third slot is padding where `has_padding`."""

    op = "rope_kv"
    outputs = ("query",)
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    block_size: int = 16
    dtype: torch.dtype = BF16
    cache_dtype: torch.dtype = BF16
    has_norm: bool = False
    has_padding: bool = False

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs."""
        return TOLERANCES[self.dtype]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments."""
        generator = _generator(self)
        num_blocks = self.num_tokens // self.block_size + 3
        cache = _empty_cache(num_blocks, self.num_kv_heads, self.block_size, self.head_dim, self.cache_dtype, device)
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        qkv = torch.randn(self.num_tokens, width, generator=generator).to(self.dtype)
        angles = torch.rand(97, self.rotary_dim // 2, generator=generator) * 6.3
        cos_sin = torch.stack([angles.cos(), angles.sin()], 1).contiguous()
        positions = torch.randint(0, 97, (self.num_tokens,), generator=generator).int()
        slots = torch.randperm(num_blocks * self.block_size, generator=generator)[: self.num_tokens].int()
        if self.has_padding:
            slots[::3] = -1
        kwargs: dict[str, Any] = {"num_heads": self.num_heads}
        if self.has_norm:
            for name in ("q_norm", "k_norm"):
                weight = 1 + 0.1 * torch.randn(self.head_dim, generator=generator)
                kwargs[name] = weight.to(self.dtype).to(device)
            kwargs["eps"] = 1e-5
        args = (qkv.to(device), cos_sin.to(device), positions.to(device), slots.to(device), cache)
        return Inputs(args, kwargs, _changed(cache))


@dataclass(frozen=True, kw_only=True)
class PrefillCase(Case):
    """`paged_prefill`."""

    op = "paged_prefill"
    outputs = ("attended",)
    query_lens: tuple[int, ...]
    past_lens: tuple[int, ...]
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = BF16
    cache_dtype: torch.dtype = BF16
    window: int = 0
    num_padding: int = 0

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs; with a float8 cache the probabilities are rounded to bfloat16."""
        return TOLERANCES[BF16 if self.cache_dtype == FP8 and self.dtype == F16 else self.dtype]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments."""
        generator = _generator(self)
        pairs = list(zip(self.query_lens, self.past_lens, strict=True))
        seq_lens = [past + new if new else 0 for new, past in pairs]
        num_blocks = [-(-length // self.block_size) for length in seq_lens]
        cache = _empty_cache(
            sum(num_blocks) + 2, self.num_kv_heads, self.block_size, self.head_dim, self.cache_dtype, device
        )
        blocks = (1 + torch.randperm(sum(num_blocks) + 1, generator=generator)).int()
        table = torch.zeros(len(pairs), max(num_blocks, default=0) + 2, dtype=torch.int32)  # block 0 is never used
        taken = 0
        for row, (count, length) in enumerate(zip(num_blocks, seq_lens, strict=True)):
            table[row, :count] = blocks[taken : taken + count]
            taken += count
            index = torch.arange(length)
            place = (table[row, index // self.block_size].long().to(device), (index % self.block_size).to(device))
            for name in ("key", "value"):
                rows = torch.randn(length, self.num_kv_heads, self.head_dim, generator=generator).to(device)
                target = getattr(cache, name)
                if self.cache_dtype == FP8:
                    values, scale = fp8_rows.quantise_rows(rows)
                    target.view(torch.uint8)[place[0], :, place[1]] = values.view(torch.uint8)
                    getattr(cache, f"{name}_scale")[place[0], :, place[1]] = scale
                else:
                    target[place[0], :, place[1]] = rows.to(target.dtype)
        num_tokens = sum(self.query_lens) + self.num_padding
        query = torch.randn(num_tokens, self.num_heads, self.head_dim, generator=generator).to(self.dtype)
        return self._call(query.to(device), cache, table.to(device), torch.tensor(seq_lens, dtype=torch.int32))

    def _call(self, query: torch.Tensor, cache: KvLayer, table: torch.Tensor, seq_lens: torch.Tensor) -> Inputs:
        starts = torch.tensor([0, *self.query_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        args = (query, cache, table, seq_lens.to(query.device), starts.to(query.device))
        return Inputs(args, {"scale": self.head_dim**-0.5, "window": self.window}, {})


@dataclass(frozen=True, kw_only=True)
class DecodeCase(PrefillCase):
    """`paged_decode`; `query_lens` are 1, or 0 for a padding row. `splits` is for implementations that split."""

    op = "paged_decode"
    splits: int = 1

    def _call(self, query: torch.Tensor, cache: KvLayer, table: torch.Tensor, seq_lens: torch.Tensor) -> Inputs:
        rows = torch.zeros(len(seq_lens), *query.shape[1:], dtype=query.dtype, device=query.device)
        rows[(seq_lens > 0).to(query.device)] = query
        args = (rows, cache, table, seq_lens.to(query.device))
        return Inputs(args, {"scale": self.head_dim**-0.5, "window": self.window}, {})


@dataclass(frozen=True, kw_only=True)
class SampleCase(Case):
    """`sample`. Logits lie on a grid of 1/8 and penalties are powers of two, so that float32 is exact, ties abound, and
    only sums of weights can differ: a token may then be another only at a border, which these seeds do not hit.

    Attributes:
        temperatures, top_ks, top_ps, min_ps: Rows take them in turn.
        has_bad_rows: Row 0 has a NaN, row 1 an infinity, row 2 nothing that is possible.
    """

    op = "sample"
    outputs = ("token_ids", "logprobs", "top_ids", "top_logprobs")
    num_rows: int
    vocab_size: int
    dtype: torch.dtype = F32
    temperatures: tuple[float, ...] = (1.0,)
    top_ks: tuple[int, ...] = (0,)
    top_ps: tuple[float, ...] = (1.0,)
    min_ps: tuple[float, ...] = (0.0,)
    has_penalties: bool = False
    num_biases: int = 0
    num_banned: int = 0
    has_allowed: bool = False
    has_bad_rows: bool = False
    num_top: int = 0
    spread: float = 3.0

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments."""
        generator = _generator(self)
        shape = (self.num_rows, self.vocab_size)
        logits = (torch.randn(shape, generator=generator) * self.spread * 8).round() / 8
        if self.has_bad_rows:
            logits[0, self.vocab_size // 2] = float("nan")
            logits[1, 0] = float("inf")
            logits[2] = float("-inf")

        def column(values: tuple[Any, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor([values[row % len(values)] for row in range(self.num_rows)], dtype=dtype).to(device)

        def ids(width: int) -> torch.Tensor:
            keys = torch.rand(shape, generator=generator)
            chosen = keys.argsort(1)[:, :width].int()
            chosen[:, 1::3] = -1
            return chosen.to(device)

        def words(rows: int) -> torch.Tensor:
            shape = (rows, -(-self.vocab_size // 32))
            return torch.randint(-(2**31), 2**31, shape, generator=generator).int().to(device)

        optional: dict[str, torch.Tensor] = {}
        if self.has_penalties:
            num_states = self.num_rows + 2
            counts = torch.randint(-3, 3, (num_states, self.vocab_size), generator=generator).clamp_min(0).int()
            optional = {
                "repetition": column((2.0, 1.0, 0.5), F32),
                "presence": column((0.5, 0.0), F32),
                "frequency": column((0.25, 0.0, -0.5, 0.0), F32),
                "state_rows": torch.randperm(num_states, generator=generator)[: self.num_rows].int().to(device),
                "counts": counts.to(device),
                "seen": words(num_states),
            }
        if self.num_biases:
            values = torch.randint(-16, 16, (self.num_rows, self.num_biases), generator=generator) / 4
            optional |= {"bias_ids": ids(self.num_biases), "bias_values": values.to(device)}
        if self.num_banned:
            optional["banned_ids"] = ids(self.num_banned)
        if self.has_allowed:
            optional["allowed"] = words(self.num_rows)
        columns = SamplingColumns(
            temperature=column(self.temperatures, F32),
            top_k=column(self.top_ks, torch.int32),
            top_p=column(self.top_ps, F32),
            min_p=column(self.min_ps, F32),
            uniforms=torch.rand(self.num_rows, generator=generator).to(device),
            **optional,
        )
        changed = {"counts": columns.counts} if columns.counts is not None else {}
        return Inputs((logits.to(self.dtype).to(device), columns), {"num_top": self.num_top}, changed)


@dataclass(frozen=True, kw_only=True)
class VerifyCase(Case):
    """`verify`; tokens are of a small vocabulary, so that drafts often stand."""

    op = "verify"
    outputs = ("num_accepted", "tokens")
    num_rows: int
    max_drafts: int

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments."""
        generator = _generator(self)
        sampled = torch.randint(0, 5, (self.num_rows, self.max_drafts + 1), generator=generator).int()
        is_right = torch.rand(self.num_rows, self.max_drafts, generator=generator) < 0.7
        drafts = torch.where(is_right, sampled[:, : self.max_drafts], 7).int()
        num_drafts = torch.randint(0, self.max_drafts + 1, (self.num_rows,), generator=generator).int()
        return Inputs((drafts.to(device), num_drafts.to(device), sampled.to(device)), {}, {})


@dataclass(frozen=True, kw_only=True)
class Int4LinearCase(Case):
    """`int4_linear`."""

    op = "int4_linear"
    outputs = ("product",)
    num_rows: int
    num_inputs: int
    num_outputs: int
    group: int
    dtype: torch.dtype = BF16

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs."""
        return TOLERANCES[self.dtype]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments; results are about as large as the inputs."""
        generator = _generator(self)
        x = torch.randn(self.num_rows, self.num_inputs, generator=generator).to(self.dtype)
        matrix = torch.randn(self.num_outputs, self.num_inputs, generator=generator) * self.num_inputs**-0.5
        weight = quantise_int4(matrix.to(device), self.group, self.dtype)
        return Inputs((x.to(device), weight), {}, {})


@dataclass(frozen=True, kw_only=True)
class Fp8LinearCase(Case):
    """`fp8_linear`."""

    op = "fp8_linear"
    outputs = ("product",)
    num_rows: int
    num_inputs: int
    num_outputs: int
    dtype: torch.dtype = BF16

    @property
    def tolerance(self) -> Tolerance:
        """Of float outputs; float8 products are summed with fewer bits than float32's on some devices."""
        return TOLERANCES[F16 if self.dtype == F32 else self.dtype]

    def inputs(self, device: torch.device) -> Inputs:
        """Makes the call's arguments; results are about as large as the inputs."""
        generator = _generator(self)
        x = torch.randn(self.num_rows, self.num_inputs, generator=generator)
        matrix = torch.randn(self.num_outputs, self.num_inputs, generator=generator) * self.num_inputs**-0.5
        values, scale = fp8_rows.quantise_rows(x.to(device))
        return Inputs((values, scale, quantise_fp8(matrix.to(device)), self.dtype), {}, {})


RMS_NORM: tuple[Case, ...] = (
    *(
        RmsNormCase(num_rows=rows, hidden_size=hidden, dtype=dtype, has_residual=residual, is_fp8=is_fp8)
        for rows, hidden, dtype, residual in (
            (0, 64, BF16, True),
            (1, 64, F32, True),
            (3, 100, F16, False),
            (5, 576, BF16, True),
            (2, 1024, BF16, False),
        )
        for is_fp8 in (False, True)
    ),
    RmsNormCase(num_rows=2, hidden_size=64, is_zero=True, is_fp8=True),
    *(
        RmsNormCase(num_rows=rows, hidden_size=hidden, is_fp8=is_fp8, is_large=True)
        for rows in (1, 256, 8192)
        for hidden in (2048, 4096, 5120, 16384)
        for is_fp8 in (False, True)
    ),
)

SILU_MUL: tuple[Case, ...] = (
    *(
        SiluMulCase(num_rows=rows, width=width, dtype=dtype, is_fp8=is_fp8)
        for rows, width, dtype in ((0, 64, BF16), (1, 48, F32), (3, 128, F16), (2, 1100, BF16))
        for is_fp8 in (False, True)
    ),
    *(
        SiluMulCase(num_rows=rows, width=width, is_fp8=is_fp8, is_large=True)
        for rows in (1, 256, 4096)
        for width in (11008, 14336, 28672)
        for is_fp8 in (False, True)
    ),
)

FP8_ROWS: tuple[Case, ...] = (
    *(
        QuantiseCase(num_rows=rows, width=width, dtype=dtype)
        for rows, width, dtype in ((0, 64, BF16), (1, 48, F32), (3, 128, F16), (2, 1100, BF16))
    ),
    *(QuantiseCase(num_rows=rows, width=width, is_large=True) for rows in (1, 256, 4096) for width in (4096, 14336)),
)

ROPE_KV: tuple[Case, ...] = (
    RopeKvCase(num_tokens=0, num_heads=4, num_kv_heads=2, head_dim=64, rotary_dim=64),
    RopeKvCase(num_tokens=1, num_heads=4, num_kv_heads=4, head_dim=64, rotary_dim=64, dtype=F32, cache_dtype=F32),
    RopeKvCase(num_tokens=5, num_heads=8, num_kv_heads=1, head_dim=128, rotary_dim=128, has_padding=True),
    RopeKvCase(num_tokens=7, num_heads=6, num_kv_heads=2, head_dim=96, rotary_dim=96, block_size=32, has_padding=True),
    RopeKvCase(num_tokens=4, num_heads=3, num_kv_heads=3, head_dim=64, rotary_dim=16, dtype=F16, cache_dtype=F16),
    RopeKvCase(num_tokens=4, num_heads=14, num_kv_heads=2, head_dim=96, rotary_dim=72, has_norm=True),
    RopeKvCase(num_tokens=9, num_heads=16, num_kv_heads=8, head_dim=128, rotary_dim=128, has_norm=True, block_size=64),
    RopeKvCase(num_tokens=6, num_heads=4, num_kv_heads=2, head_dim=128, rotary_dim=128, cache_dtype=FP8),
    RopeKvCase(
        num_tokens=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=96,
        rotary_dim=48,
        cache_dtype=FP8,
        dtype=F32,
        has_norm=True,
        has_padding=True,
    ),
    *(
        RopeKvCase(
            num_tokens=tokens,
            num_heads=32,
            num_kv_heads=kv_heads,
            head_dim=128,
            rotary_dim=128,
            cache_dtype=cache_dtype,
            block_size=64,
            has_padding=tokens > 1,
            is_large=True,
        )
        for tokens in (1, 256, 8192)
        for kv_heads in (8, 32)
        for cache_dtype in (BF16, FP8)
    ),
)

PREFILL: tuple[Case, ...] = (
    PrefillCase(query_lens=(1,), past_lens=(0,)),
    PrefillCase(query_lens=(), past_lens=(), num_padding=3),
    PrefillCase(query_lens=(0, 0), past_lens=(0, 0), num_padding=1),
    PrefillCase(query_lens=(5, 0, 1, 37), past_lens=(0, 3, 66, 15), num_padding=6),
    PrefillCase(query_lens=(70, 3), past_lens=(0, 130), num_heads=2, num_kv_heads=2, block_size=64),
    PrefillCase(query_lens=(17, 33), past_lens=(40, 0), num_heads=16, num_kv_heads=2, head_dim=128, block_size=32),
    PrefillCase(
        query_lens=(20, 9), past_lens=(7, 64), num_heads=6, num_kv_heads=2, head_dim=96, dtype=F16, cache_dtype=F16
    ),
    PrefillCase(query_lens=(40, 50, 2), past_lens=(0, 90, 33), window=24, num_padding=2),
    PrefillCase(query_lens=(40, 2), past_lens=(31, 100), window=1, num_heads=2),
    PrefillCase(query_lens=(33, 5), past_lens=(20, 80), dtype=F32, cache_dtype=F32, num_heads=3, num_kv_heads=1),
    PrefillCase(query_lens=(33, 5, 0, 8), past_lens=(20, 80, 0, 0), cache_dtype=FP8, block_size=64, num_padding=1),
    PrefillCase(query_lens=(12, 5), past_lens=(20, 80), dtype=F32, cache_dtype=FP8, window=40, head_dim=128),
    PrefillCase(query_lens=(12,), past_lens=(70,), dtype=F16, cache_dtype=FP8, head_dim=96),
    PrefillCase(query_lens=(12,), past_lens=(70,), dtype=BF16, cache_dtype=F16),
    *(
        PrefillCase(
            query_lens=(1, 2048, 512, 77, 0, 1300),
            past_lens=(4000, 0, 1024, 5, 0, 3),
            num_heads=32,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            cache_dtype=cache_dtype,
            window=window,
            num_padding=30,
            is_large=True,
        )
        for kv_heads in (4, 8, 32)
        for head_dim in (64, 96, 128)
        for block_size, window in ((16, 0), (64, 0), (64, 700))
        for cache_dtype in (BF16, FP8)
    ),
)

DECODE: tuple[Case, ...] = (
    DecodeCase(query_lens=(1,), past_lens=(0,)),
    DecodeCase(query_lens=(), past_lens=()),
    DecodeCase(query_lens=(0, 0), past_lens=(0, 0), splits=4),
    *(
        DecodeCase(
            query_lens=(1, 1, 0, 1, 1, 1),
            past_lens=(0, 15, 0, 16, 63, 300),
            num_heads=group * 2,
            num_kv_heads=2,
            head_dim=head_dim,
            block_size=block_size,
            dtype=dtype,
            cache_dtype=cache_dtype,
            splits=splits,
        )
        for group, head_dim, block_size, dtype, cache_dtype, splits in (
            (1, 64, 16, BF16, BF16, 1),
            (4, 128, 64, BF16, BF16, 3),
            (8, 64, 32, F16, F16, 8),
            (7, 96, 16, F32, F32, 2),
            (4, 128, 16, BF16, FP8, 4),
            (1, 96, 64, F16, FP8, 5),
            (8, 64, 64, F32, FP8, 1),
            (4, 64, 64, F32, BF16, 2),
        )
    ),
    DecodeCase(query_lens=(1, 1, 0, 1), past_lens=(200, 10, 0, 63), window=50, splits=2),
    DecodeCase(query_lens=(1, 1), past_lens=(200, 129), window=1, splits=1, block_size=64),
    DecodeCase(query_lens=(1, 1), past_lens=(200, 129), window=64, splits=3, cache_dtype=FP8),
    *(
        DecodeCase(
            query_lens=(1,) * 6 + (0,) * 2,
            past_lens=(0, 1, 511, 4095, 1000, 8000, 0, 0),
            num_heads=32,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            cache_dtype=cache_dtype,
            window=window,
            splits=splits,
            is_large=True,
        )
        for kv_heads in (4, 8, 32)
        for head_dim in (64, 96, 128)
        for block_size, window, splits in ((16, 0, 8), (32, 0, 1), (64, 0, 16), (64, 700, 4))
        for cache_dtype in (BF16, FP8)
    ),
)

SAMPLE: tuple[Case, ...] = (
    SampleCase(num_rows=0, vocab_size=100),
    SampleCase(num_rows=1, vocab_size=1, num_top=3),
    SampleCase(num_rows=3, vocab_size=97, temperatures=(0.0,), num_top=5),
    SampleCase(num_rows=4, vocab_size=1000, temperatures=(1.0, 0.25, 4.0), dtype=BF16),
    SampleCase(num_rows=6, vocab_size=1000, top_ks=(1, 7, 50, 300, 999, 5000), dtype=F16, num_top=2),
    SampleCase(num_rows=6, vocab_size=1000, top_ps=(0.01, 0.3, 0.9, 0.999, 0.9999999, 1.0)),
    SampleCase(num_rows=4, vocab_size=1000, top_ps=(0.5, 0.9, 0.99), spread=0.3),
    SampleCase(num_rows=4, vocab_size=1000, top_ks=(20, 0, 400), top_ps=(0.9, 0.6), min_ps=(0.0, 0.05, 1.0)),
    SampleCase(num_rows=2, vocab_size=700, spread=0.0, top_ks=(5, 0), top_ps=(1.0, 0.5), num_top=4),
    SampleCase(num_rows=3, vocab_size=513, temperatures=(1e-9, 1e-3, 100.0), top_ks=(0, 3), top_ps=(1.0, 0.8)),
    SampleCase(num_rows=5, vocab_size=600, has_bad_rows=True, temperatures=(0.0, 1.0), top_ks=(3,), num_top=3),
    SampleCase(
        num_rows=5,
        vocab_size=777,
        has_penalties=True,
        num_biases=5,
        num_banned=4,
        has_allowed=True,
        temperatures=(1.0, 0.0, 0.5),
        top_ks=(0, 0, 40),
        top_ps=(0.9, 1.0),
        num_top=3,
        dtype=BF16,
    ),
    SampleCase(num_rows=3, vocab_size=300, has_penalties=True, has_bad_rows=True),
    SampleCase(num_rows=2, vocab_size=300, num_biases=3, top_ks=(10,)),
    SampleCase(num_rows=3, vocab_size=120, top_ks=(120, 500), top_ps=(0.5, 0.9)),
    *(
        SampleCase(
            num_rows=rows,
            vocab_size=vocab_size,
            temperatures=(1.0, 0.0, 0.7),
            top_ks=top_ks,
            top_ps=top_ps,
            has_penalties=adjusts,
            has_allowed=adjusts,
            num_biases=30 if adjusts else 0,
            num_top=20 if adjusts else 0,
            is_large=True,
        )
        for rows in (1, 256)
        for vocab_size in (32_000, 128_256, 262_144)
        for top_ks, top_ps in (((0,), (1.0,)), ((50, 0, 6000), (1.0, 0.9)))
        for adjusts in (False, True)
    ),
)

VERIFY: tuple[Case, ...] = (
    VerifyCase(num_rows=0, max_drafts=4),
    VerifyCase(num_rows=3, max_drafts=0),
    VerifyCase(num_rows=9, max_drafts=1),
    VerifyCase(num_rows=20, max_drafts=5),
    VerifyCase(num_rows=4, max_drafts=16),
    VerifyCase(num_rows=256, max_drafts=7, is_large=True),
)

LINEAR: tuple[Case, ...] = (
    *(
        Int4LinearCase(num_rows=rows, num_inputs=inputs, num_outputs=outputs, group=group, dtype=dtype)
        for rows, inputs, outputs, group, dtype in (
            (0, 64, 32, 32, BF16),
            (1, 128, 40, 32, BF16),
            (3, 256, 100, 128, F16),
            (17, 192, 72, 96, F32),
            (70, 128, 136, 64, BF16),
        )
    ),
    *(
        Fp8LinearCase(num_rows=rows, num_inputs=inputs, num_outputs=outputs, dtype=dtype)
        for rows, inputs, outputs, dtype in (
            (0, 64, 32, BF16),
            (1, 128, 40, BF16),
            (3, 200, 100, F16),
            (17, 144, 72, F32),
            (70, 272, 136, BF16),
        )
    ),
    *(
        case
        for rows in (1, 8, 33, 256, 2048)
        for inputs, outputs in ((4096, 6144), (14336, 4096))
        for case in (
            Int4LinearCase(num_rows=rows, num_inputs=inputs, num_outputs=outputs, group=128, is_large=True),
            Fp8LinearCase(num_rows=rows, num_inputs=inputs, num_outputs=outputs, is_large=True),
        )
    ),
)

CASES: Mapping[str, tuple[Case, ...]] = {
    "fp8": FP8_ROWS,
    "rms_norm": RMS_NORM,
    "silu_mul": SILU_MUL,
    "rope_kv": ROPE_KV,
    "paged_attention": PREFILL + DECODE,
    "sample": SAMPLE,
    "verify": VERIFY,
    "linear": LINEAR,
}
"""By the reference's stem."""

AHEAD: Mapping[str, tuple[Case, ...]] = {
    "fp8": (QuantiseCase(num_rows=2, width=4096), QuantiseCase(num_rows=2, width=14336)),
    "rms_norm": tuple(
        RmsNormCase(num_rows=2, hidden_size=hidden, is_fp8=is_fp8)
        for hidden, is_fp8 in ((5120, False), (5120, True), (16384, True))
    ),
    "silu_mul": tuple(
        SiluMulCase(num_rows=2, width=width, is_fp8=is_fp8) for width in (11008, 28672) for is_fp8 in (False, True)
    ),
    "rope_kv": (
        RopeKvCase(num_tokens=2, num_heads=32, num_kv_heads=8, head_dim=128, rotary_dim=128),
        RopeKvCase(num_tokens=2, num_heads=32, num_kv_heads=8, head_dim=128, rotary_dim=128, cache_dtype=FP8),
        RopeKvCase(num_tokens=2, num_heads=24, num_kv_heads=8, head_dim=96, rotary_dim=72, has_norm=True),
    ),
    "paged_attention": tuple(
        case
        for kv_heads, head_dim, block_size, cache_dtype, window in (
            (8, 128, 64, BF16, 0),
            (32, 128, 64, BF16, 0),
            (8, 128, 64, FP8, 0),
            (8, 128, 16, BF16, 0),
            (8, 128, 16, FP8, 700),
            (8, 96, 32, BF16, 0),
            (4, 64, 64, BF16, 0),
            (4, 64, 64, FP8, 0),
        )
        for case in (
            DecodeCase(
                query_lens=(1,),
                past_lens=(1023,),
                num_heads=32,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                block_size=block_size,
                cache_dtype=cache_dtype,
                window=window,
                splits=8 if kv_heads == 8 else 1,
            ),
            PrefillCase(
                query_lens=(1,),
                past_lens=(1023,),
                num_heads=32,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                block_size=block_size,
                cache_dtype=cache_dtype,
                window=window,
            ),
        )
    ),
    "sample": (
        SampleCase(num_rows=1, vocab_size=128_256, top_ks=(50,), num_top=20),
        SampleCase(
            num_rows=1, vocab_size=32_000, has_penalties=True, num_biases=8, num_banned=2, has_allowed=True, dtype=BF16
        ),
    ),
    "verify": (VerifyCase(num_rows=2, max_drafts=7),),
    "linear": tuple(
        case
        for rows in (16, 64, 128)
        for case in (
            Int4LinearCase(num_rows=rows, num_inputs=4096, num_outputs=256, group=128),
            Fp8LinearCase(num_rows=rows, num_inputs=4096, num_outputs=256),
        )
    ),
}
"""Cases with the constants of real models and few rows: what is compiled without a GPU."""
