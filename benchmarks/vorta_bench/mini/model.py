"""A Llama-architecture decoder in plain torch, with the tensor names of Hugging Face checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_bench.mini.quantization import Precision, quantize_rows, straight_through


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes; the key and value heads are as many as the query heads unless said otherwise."""

    vocab_size: int = 4096
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 6
    head_dim: int = 32
    intermediate_size: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    max_length: int = 4096


@dataclass(slots=True)
class KvCache:
    """Keys and values of one layer, [batch, kv heads, positions, head_dim]; grows with each call."""

    key: Tensor | None = None
    value: Tensor | None = None


class QuantLinear(nn.Linear):
    """A linear layer without bias that can compute with its weights (and inputs) as if quantised."""

    precision: Precision = "fp32"
    quantizes_input = False

    def forward(self, x: Tensor) -> Tensor:
        if self.quantizes_input:
            x = x + (quantize_rows(x.detach()) - x.detach())
        return functional.linear(x, straight_through(self.weight, self.precision))


class Attention(nn.Module):
    """Causal attention with rotary positions; `mask` [B, 1, S, T] is true where a query may look."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = QuantLinear(config.hidden_size, width, bias=False)
        self.k_proj = QuantLinear(config.hidden_size, kv_width, bias=False)
        self.v_proj = QuantLinear(config.hidden_size, kv_width, bias=False)
        self.o_proj = QuantLinear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: KvCache | None) -> Tensor:
        head_dim = self.config.head_dim
        query = self.q_proj(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        key = self.k_proj(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        value = self.v_proj(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            if cache.key is not None and cache.value is not None:
                key, value = torch.cat([cache.key, key], 2), torch.cat([cache.value, value], 2)
            cache.key, cache.value = key, value
        mixed = attend(query, key, value, mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return out


# On a CPU, three plain products of this length and less were 2.5 times as fast, gradients included, as the fused
# operator (rows of 128, 6 heads of 32, bfloat16); at 256 they were slower.
_PLAIN_ATTENTION_LENGTH = 160


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of queries [B, heads, S, head_dim] over keys and values [B, kv heads, T, head_dim]."""
    grouped = key.shape[1] != query.shape[1]
    if query.is_cuda or grouped or key.shape[2] > _PLAIN_ATTENTION_LENGTH:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
    scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -1e30).softmax(-1).to(value.dtype) @ value


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = QuantLinear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = QuantLinear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = QuantLinear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm and added to the residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: KvCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and the last norm: what a Hugging Face checkpoint calls `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


class MiniModel(nn.Module):
    """The language model; the output layer shares the embedding's weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.head_precision: Precision = "fp32"
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 if "embed" in name else (0.3 if residual else 1.0) / parameter.shape[1] ** 0.5
                nn.init.normal_(parameter, std=std)

    def hidden(self, tokens: Tensor, positions: Tensor, mask: Tensor, caches: list[KvCache] | None = None) -> Tensor:
        """Hidden states [B, S, hidden] of tokens [B, S] at positions [B, S]."""
        rotation = rotation_of(positions, self.config)
        x = self.model.embed_tokens(tokens)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, rotation, mask, caches[index] if caches else None)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, [..., vocab]."""
        return functional.linear(hidden, straight_through(self.model.embed_tokens.weight, self.head_precision))

    def set_precision(self, precision: Precision, quantizes_input: bool = False) -> None:
        """Compute all linear layers, the output layer included, as if quantised from now on."""
        self.head_precision = precision
        for module in self.modules():
            if isinstance(module, QuantLinear):
                module.precision = precision
                module.quantizes_input = quantizes_input


def rotation_of(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, S, head_dim] for positions [B, S]."""
    half = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None, :, None].float() * config.rope_theta ** (-half / config.head_dim)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of [B, heads, S, head_dim], halves paired as in Hugging Face's Llama."""
    cosine, sine = rotation
    first, second = x.chunk(2, -1)
    return x * cosine.to(x.dtype) + torch.cat([-second, first], -1) * sine.to(x.dtype)
