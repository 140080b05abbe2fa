"""The decoder's graph: one graph for prefill and decode, built from a DecoderSpec.

Inputs   input_ids int64 [B, S];
         output_rows int64 [R], indices into the flattened [B * S] positions whose logits are wanted;
         past_key_i, past_value_i [B, KH, T, D], of the lowering's element type;
         on the cpu: seqlens_k int32 [B], each row's valid length after this step, minus 1, and
         total_sequence_length int32 [], the largest of those lengths;
         in standard operators: past_lengths int64 [B], the tokens that each row's cache holds before this step.
Outputs  logits float32 [R, V];
         present_key_i, present_value_i [B, KH, T, D] (may share past's buffers).
On the cpu B > 1 only with S == 1, or with an empty past; a chunk on a non-empty past runs with B == 1. In standard
operators any: a row's tokens are written behind its past, all S of them, of which those that only fill the row up are
overwritten by the next step; past + S must not exceed T.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.head import HeadLayout, head_layout
from vorta_server.compiler.linear import AttentionLayer, Linear, LinearLowering
from vorta_server.compiler.rope import rope_tables
from vorta_server.compiler.spec import DecoderSpec
from vorta_server.compiler.weight import DecoderWeights, take_columns, take_rows


def compiled_head_dim(spec: DecoderSpec) -> int:
    """Elements of a head in the KV cache: the model's, rounded up to what attention can rotate."""
    return head_layout(spec.head_dim, spec.rope.rotary_dim).dim


class DecoderGraph:
    """Adds a decoder to a graph.

    Args:
        graph: the builder; the decoder is all it will hold.
        spec: the decoder's shape.
        weights: its tensors.
        lowering: how linear layers compute.
        max_model_len: positions in the rope tables.
        progress: called with a layer's index as it begins.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        spec: DecoderSpec,
        weights: DecoderWeights,
        lowering: LinearLowering,
        max_model_len: int,
        progress: Callable[[int], None],
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._weights = weights
        self._lowering = lowering
        self._max_model_len = max_model_len
        self._progress = progress
        self._layout = head_layout(spec.head_dim, spec.rope.rotary_dim)

    def build(self) -> None:
        """Adds every node from input_ids to logits."""
        graph, spec = self._graph, self._spec
        ids = graph.input("input_ids", TensorProto.INT64, ["batch", "step"])
        self._lowering.inputs(graph, max_positions=self._max_model_len)
        graph.input("output_rows", TensorProto.INT64, ["rows"])
        graph.output("logits", TensorProto.FLOAT, ["rows", spec.vocab_size])
        self._rope_tables()
        residual = self._lowering.embedding(graph, ids, self._weights.matrix("model.embed_tokens.weight"))
        delta: str | None = None
        for layer in range(spec.num_layers):
            self._progress(layer)
            prefix = f"layers.{layer}"
            normed, residual = self._add_norm(f"{prefix}.input_layernorm", residual, delta)
            attended = self._attention(layer, normed)
            if layer == spec.num_layers - 1:
                # From here on nothing mixes positions, so only those whose logits are wanted go on.
                heads_dim = spec.num_heads * self._layout.dim
                attended = self._wanted_rows(f"{prefix}.self_attn.wanted", attended, heads_dim)
                residual = self._wanted_rows(f"{prefix}.residual.wanted", residual, spec.hidden_size)
            delta = self._lowering.delta(graph, attended, self._output_projection(layer))
            normed, residual = self._add_norm(f"{prefix}.post_attention_layernorm", residual, delta)
            delta = self._feed_forward(layer, normed)
        normed, _ = self._add_norm("norm", residual, delta)
        self._progress(spec.num_layers)
        head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
        self._lowering.logits(graph, normed, Linear(name="logits", weight=self._weights.matrix(head)))

    def _constant(self, name: str, value: np.ndarray) -> str:
        return self._graph.constant(name, value.astype(self._lowering.element))

    def _rope_tables(self) -> None:
        cos, sin = rope_tables(self._spec.rope, self._max_model_len)
        self._constant("cos_cache", self._layout.place_table(cos, 1.0))
        self._constant("sin_cache", self._layout.place_table(sin, 0.0))

    def _add_norm(self, name: str, residual: str, delta: str | None) -> tuple[str, str]:
        """RMS norm of residual + delta; returns it and the sum."""
        weight = self._constant(f"{name}.weight", self._weights.vector(f"model.{name}.weight"))
        return self._lowering.norm(self._graph, name, residual, delta, weight, self._spec.rms_norm_eps)

    def _attention(self, layer: int, x: str) -> str:
        graph, spec = self._graph, self._spec
        prefix = f"layers.{layer}.self_attn"
        counts = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads, "v_proj": spec.num_kv_heads}
        parts = [self._head_projection(f"{prefix}.{name}", count) for name, count in counts.items()]
        if spec.qk_norm:
            query, key, value = self._lowering.shared(graph, x, parts)
            query = self._head_norm(f"{prefix}.q_norm", query, spec.num_heads)
            key = self._head_norm(f"{prefix}.k_norm", key, spec.num_kv_heads)
        else:
            query, key, value = self._lowering.packed(graph, x, f"{prefix}.qkv_proj", parts), "", ""
        shape: list[int | str] = ["batch", spec.num_kv_heads, "capacity", self._layout.dim]
        cache = (f"key_{layer}", f"value_{layer}")
        cache_type = helper.np_dtype_to_tensor_dtype(self._lowering.element)
        for name in cache:
            graph.input(f"past_{name}", cache_type, shape)
            graph.output(f"present_{name}", cache_type, shape)
        return self._lowering.attention(
            graph,
            f"{prefix}.attention",
            AttentionLayer(
                query=query,
                key=key,
                value=value,
                cache=cache,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                scale=1.0 / math.sqrt(spec.head_dim),
                window=spec.windows[layer],
            ),
        )

    def _head_projection(self, name: str, num_heads: int) -> Linear:
        weight = self._weights.matrix(f"model.{name}.weight")
        bias = self._weights.optional_vector(f"model.{name}.bias")
        if not self._layout.is_identity:
            source = self._layout.rows(num_heads)
            weight = take_rows(weight, source)
            if bias is not None:
                bias = np.where(source < 0, np.float32(0), bias[source])
        return Linear(name=name, weight=weight, bias=bias)

    def _output_projection(self, layer: int) -> Linear:
        name = f"layers.{layer}.self_attn.o_proj"
        weight = self._weights.matrix(f"model.{name}.weight")
        if not self._layout.is_identity:
            weight = take_columns(weight, self._layout.rows(self._spec.num_heads))
        return Linear(name=name, weight=weight, bias=self._weights.optional_vector(f"model.{name}.bias"))

    def _head_norm(self, name: str, x: str, num_heads: int) -> str:
        """RMS norm over each head of x [B, S, num_heads * D]."""
        graph, layout = self._graph, self._layout
        scale, epsilon = padded_norm(layout, self._weights.vector(f"model.{name}.weight"), self._spec.rms_norm_eps)
        split = graph.constant(f"heads_shape_{num_heads}", np.array([0, 0, num_heads, layout.dim], np.int64))
        merged = graph.constant("merged_shape", np.array([0, 0, -1], np.int64))
        heads = graph.node("Reshape", [x, split], [f"{name}.heads"])
        weight = self._constant(f"{name}.weight", scale)
        normed = self._lowering.head_norm(graph, f"{name}.normed", heads, weight, epsilon)
        return graph.node("Reshape", [normed, merged], [name])

    def _feed_forward(self, layer: int, x: str) -> str:
        graph, prefix = self._graph, f"layers.{layer}.mlp"
        gate, up = self._linear(f"{prefix}.gate_proj"), self._linear(f"{prefix}.up_proj")
        product = self._lowering.gated(graph, x, f"{prefix}.product", gate, up)
        return self._lowering.delta(graph, product, self._linear(f"{prefix}.down_proj"))

    def _linear(self, name: str) -> Linear:
        weight = self._weights.matrix(f"model.{name}.weight")
        return Linear(name=name, weight=weight, bias=self._weights.optional_vector(f"model.{name}.bias"))

    def _wanted_rows(self, name: str, x: str, width: int) -> str:
        """The rows of x [B, S, width] that output_rows names: [R, width]."""
        graph = self._graph
        shape = graph.constant(f"flat_shape_{width}", np.array([-1, width], np.int64))
        flat = graph.node("Reshape", [x, shape], [f"{name}.flat"])
        return graph.node("Gather", [flat, "output_rows"], [name], axis=0)


def padded_norm(layout: HeadLayout, weight: np.ndarray, epsilon: float) -> tuple[np.ndarray, float]:
    """Weight and epsilon that make an RMS norm over the padded head equal to the one over the source head.

    The padding's zeros divide the mean square by dim / source_dim; scaling epsilon by the inverse ratio and
    the weight by its root undoes that exactly.
    """
    ratio = layout.source_dim / layout.dim
    return layout.place(weight) * np.float32(math.sqrt(ratio)), epsilon * ratio
