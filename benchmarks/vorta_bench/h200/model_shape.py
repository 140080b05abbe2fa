"""The shapes that speed is measured on. Weights are random: speed depends on shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SHAPES", "ModelShape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama-like decoder without biases and with an untied head.

    Attributes:
        name: What it is called in keys and on the page.
        title: What it is called for people.
    """

    name: str
    title: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    max_model_len: int

    @property
    def num_linear(self) -> int:
        """Weights of the layers' matrices."""
        attention = 2 * self.hidden_size * (self.num_heads + self.num_kv_heads) * self.head_dim
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_head(self) -> int:
        """Weights of the output head; the embedding has as many, of which a step reads only its rows."""
        return self.vocab_size * self.hidden_size

    @property
    def kv_elements(self) -> int:
        """Elements of K and V that one token takes in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a layer's matrices as they are multiplied: q, k, v together, and gate, up."""
        query = self.num_heads * self.head_dim
        return {
            "qkv": (query + 2 * self.num_kv_heads * self.head_dim, self.hidden_size),
            "o": (self.hidden_size, query),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }

    def config(self) -> dict[str, Any]:
        """config.json of a checkpoint of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_model_len,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "torch_dtype": "bfloat16",
        }


_ALL = (
    ModelShape(
        name="llama-2-7b",
        title="Llama-2-7B",
        num_layers=32,
        hidden_size=4096,
        intermediate_size=11008,
        vocab_size=32000,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        rope_theta=10000.0,
        max_model_len=4096,
    ),
    ModelShape(
        name="llama-3.1-8b",
        title="Llama-3.1-8B",
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        vocab_size=128256,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=500000.0,
        max_model_len=8192,
    ),
    # Two layers of the first, for comparing logits.
    ModelShape(
        name="llama-2-7b-part",
        title="two layers of Llama-2-7B",
        num_layers=2,
        hidden_size=4096,
        intermediate_size=11008,
        vocab_size=32000,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        rope_theta=10000.0,
        max_model_len=4096,
    ),
    # For dry runs on a CPU.
    ModelShape(
        name="tiny",
        title="tiny",
        num_layers=2,
        hidden_size=128,
        intermediate_size=256,
        vocab_size=4096,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        max_model_len=512,
    ),
)
SHAPES = {shape.name: shape for shape in _ALL}
"""By name."""
