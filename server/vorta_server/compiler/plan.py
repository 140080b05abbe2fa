"""Which graphs an artifact has, how each computes, and from how many rows on it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vorta_server.compiler.encoder_lowering import EncoderLowering
from vorta_server.compiler.linear import BlockLowering, Float32Lowering, IntegerLowering, LinearLowering
from vorta_server.compiler.native import NativeLowering
from vorta_server.compiler.opset_decoder import OpsetDecoderLowering
from vorta_server.compiler.opset_encoder import OpsetEncoderLowering
from vorta_server.compiler.opset_product import OPSET_PRECISIONS, OpsetProducts
from vorta_server.compiler.packed import PackedFloatLowering, PackedIntegerLowering
from vorta_server.compiler.padded import PaddedLowering
from vorta_server.compiler.quantise import BLOCK

__all__ = ["ENCODER_PRECISIONS", "PRECISIONS", "GraphPlan", "Kernels", "plan_encoder", "plan_graphs", "precisions_of"]

PRECISIONS = ("fp32", "int8", "int4")
ENCODER_PRECISIONS = ("fp32", "int8")

Kernels = Literal["portable", "vorta"]
"""Whose operators a graph has beside ONNX's: ONNX Runtime's alone, or those of `vorta_kernels.cpu` too."""

# Rows from which multiplying 8-bit integers is faster than unpacking blocks; benchmarks/results/cpu.md has the
# measurements.
_INTEGER_MIN_ROWS = {"int4": 4, "int8": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """One graph of an artifact: its file, the rows (B * S) from which it is used, and its lowering."""

    file: str
    min_rows: int
    lowering: LinearLowering


def precisions_of(target: str, *, is_encoder: bool) -> tuple[str, ...]:
    """The precisions that a model can be compiled to for a target."""
    if target == "tensorrt":
        return OPSET_PRECISIONS
    return ENCODER_PRECISIONS if is_encoder else PRECISIONS


def plan_graphs(target: str, precision: str, kernels: Kernels, block: int = BLOCK) -> list[GraphPlan]:
    """The graphs of an artifact of this precision (one of `precisions_of`), ascending in min_rows from 1."""
    if target == "tensorrt":
        return [GraphPlan(file="model.onnx", min_rows=1, lowering=OpsetDecoderLowering(precision, block))]
    if precision == "fp32":
        return [GraphPlan(file="model.onnx", min_rows=1, lowering=Float32Lowering())]
    if kernels == "vorta":
        return [GraphPlan(file="model.onnx", min_rows=1, lowering=NativeLowering(precision, block))]
    return [
        GraphPlan(file="model.onnx", min_rows=1, lowering=BlockLowering(precision, block)),
        GraphPlan(file="model_many_rows.onnx", min_rows=_INTEGER_MIN_ROWS[precision], lowering=IntegerLowering()),
    ]


def plan_encoder(target: str, precision: str, kernels: Kernels, block: int) -> EncoderLowering:
    """How an encoder of this precision (one of `precisions_of`) computes; it has one graph."""
    if target == "tensorrt":
        return OpsetEncoderLowering(OpsetProducts(precision, block))
    if kernels == "portable":
        return PaddedLowering(Float32Lowering() if precision == "fp32" else IntegerLowering())
    return PackedFloatLowering() if precision == "fp32" else PackedIntegerLowering(block)
