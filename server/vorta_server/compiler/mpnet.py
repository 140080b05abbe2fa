"""MPNet (arXiv 2004.09297): BERT without token types, with relative positions beside the absolute ones."""

from __future__ import annotations

from dataclasses import replace

from vorta_server.compiler.bert import read_post_norm
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder_spec import EncoderNames, EncoderSpec, RelativeBias

EMBEDDING_ARCHITECTURES = ("MPNetModel", "MPNetForMaskedLM")

_NAMES = EncoderNames(
    prefixes=("mpnet.", ""),
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    embedding_norm="embeddings.LayerNorm",
    layer="encoder.layer.{}.",
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attention_output="attention.attn.o",
    attention_norm="attention.LayerNorm",
    inner=("intermediate.dense",),
    outer="output.dense",
    feed_norm="output.LayerNorm",
    relative="encoder.relative_attention_bias",
    ignored=r"lm_head\..*|(mpnet\.)?pooler\..*",
)


def read_mpnet(config: ConfigReader, architecture: str) -> EncoderSpec:
    """Positions begin one behind the padding's id, which is 1 whatever the configuration says, as in the reference."""
    spec = read_post_norm(
        config,
        architecture,
        names=_NAMES,
        default_num_types=0,
        default_pad_token_id=1,
        first_position=2,
        head=None,
    )
    num_buckets = config.positive_int("relative_attention_num_buckets", 32, maximum=4096)
    if num_buckets % 4:
        raise config.error("relative_attention_num_buckets", f"({num_buckets}) must be a multiple of 4")
    return replace(spec, relative=RelativeBias(num_buckets=num_buckets))
