"""The public operations: which implementation they pick, and that all have the references' signatures."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
import torch

from vorta_kernels import grid, ops
from vorta_kernels.reference.linear import quantise_fp8

STEMS = {
    "fp8": ["quantise_rows"],
    "rms_norm": ["rms_norm", "rms_norm_fp8"],
    "silu_mul": ["silu_mul", "silu_mul_fp8"],
    "rope_kv": ["rope_kv"],
    "paged_attention": ["paged_decode", "paged_prefill"],
    "sample": ["sample"],
    "verify": ["verify"],
    "linear": ["fp8_linear", "int4_linear"],
}
REFERENCE_ONLY = {"batch_pack": ["batch_pack", "batch_compact"], "block_copy": ["block_copy"]}


def _signature(package: str, stem: str, name: str) -> list[str]:
    function = getattr(importlib.import_module(f"vorta_kernels.{package}{stem}"), name)
    return [str(parameter) for parameter in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem, names in STEMS.items() for name in names])
def test_kernels_take_what_the_reference_takes_and_keywords_to_tune(stem: str, name: str) -> None:
    expected = _signature("reference.", stem, name)
    assert _signature("triton_ops.", stem, name)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("stem", "name"), [(stem, name) for stem, names in (STEMS | REFERENCE_ONLY).items() for name in names]
)
def test_operations_take_what_the_reference_takes(stem: str, name: str) -> None:
    expected = _signature("reference.", stem, name)
    assert [str(one) for one in inspect.signature(getattr(ops, name)).parameters.values()][: len(expected)] == expected


def test_every_reference_has_an_operation() -> None:
    others = {"batch_pack_by_search", "has_cuda_library", "plain_linear", "scaled_mm", "shuffle_int4"}
    assert set(ops.__all__) - others == {name for names in (STEMS | REFERENCE_ONLY).values() for name in names}


def test_every_stem_has_cases() -> None:
    assert set(grid.CASES) == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_tensors_on_a_cpu_take_the_reference(stem: str) -> None:
    case = next(case for case in grid.CASES[stem] if not case.is_large)
    reference = getattr(importlib.import_module(f"vorta_kernels.reference.{stem}"), case.op)
    expected = grid.run(case, reference, torch.device("cpu"))
    assert grid.mismatches(case, grid.run(case, getattr(ops, case.op), torch.device("cpu")), expected) == []


@pytest.mark.parametrize("query_lens", [(1,), (1, 1, 1), (0, 5, 0, 1), (70, 1), (16, 0), (2, 3, 64, 1, 7)])
def test_packing_without_the_library_is_the_references(query_lens: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    lens = torch.tensor(query_lens, dtype=torch.int32)
    past = torch.randint(0, 50, (len(lens),), generator=generator, dtype=torch.int32)
    table = torch.randint(0, 99, (len(lens), 10), generator=generator, dtype=torch.int32)
    for padded in (int(lens.sum()), int(lens.sum()) + 9):
        expected = ops.batch_pack(lens, past, table, block_size=16, num_tokens_padded=padded)
        got = ops.batch_pack_by_search(lens, past, table, block_size=16, num_tokens_padded=padded)
        for name in ("cu_query_lens", "positions", "slots", "sequence"):
            assert torch.equal(getattr(got, name), getattr(expected, name)), name
            assert getattr(got, name).dtype == torch.int32


def test_torchs_product_of_float8_is_the_references() -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_scale = ops.quantise_rows(torch.randn(20, 64, generator=generator))
    weight = quantise_fp8(torch.randn(48, 64, generator=generator))
    expected = ops.fp8_linear(x, x_scale, weight, torch.bfloat16)
    torch.testing.assert_close(ops.scaled_mm(x, x_scale, weight, torch.bfloat16), expected, atol=2e-2, rtol=1e-2)


def test_import_needs_no_triton() -> None:
    code = "import sys, vorta_kernels.ops; print('triton' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
