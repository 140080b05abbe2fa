"""BERT (arXiv 1810.04805) as an encoder of texts, and as a cross-encoder that scores pairs of them.

Models published as BertForMaskedLM or BertForPreTraining are taken for what lies under their head.
"""

from __future__ import annotations

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder_spec import (
    MAX_POSITIONS,
    EncoderNames,
    EncoderSpec,
    ScoreHead,
    check_common,
    read_activation,
    read_heads,
    read_num_labels,
    read_pad_token_id,
    read_uses_sigmoid,
)
from vorta_server.compiler.spec import read_num_layers

EMBEDDING_ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
SCORE_ARCHITECTURES = ("BertForSequenceClassification",)

_HEAD_OF_PRETRAINING = r"cls\..*"


def read_bert(config: ConfigReader, architecture: str) -> EncoderSpec:
    """`type_vocab_size` token types tell the texts of a pair apart; positions count from 0."""
    is_scoring = architecture in SCORE_ARCHITECTURES
    return read_post_norm(
        config,
        architecture,
        names=bert_names("bert.", ignored="" if is_scoring else rf"{_HEAD_OF_PRETRAINING}|(bert\.)?pooler\..*"),
        default_num_types=2,
        default_pad_token_id=0,
        first_position=0,
        head=_read_head(config) if is_scoring else None,
    )


def _read_head(config: ConfigReader) -> ScoreHead:
    num_labels = read_num_labels(config)
    return ScoreHead(
        num_labels=num_labels,
        pooling="cls",
        dense="bert.pooler.dense",
        activation="tanh",
        classifier="classifier",
        uses_sigmoid=read_uses_sigmoid(config, num_labels),
    )


def bert_names(prefix: str, *, ignored: str) -> EncoderNames:
    """BERT's names, which RoBERTa shares."""
    return EncoderNames(
        prefixes=(prefix, ""),
        words="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        types="embeddings.token_type_embeddings",
        embedding_norm="embeddings.LayerNorm",
        layer="encoder.layer.{}.",
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        inner=("intermediate.dense",),
        outer="output.dense",
        feed_norm="output.LayerNorm",
        ignored=ignored,
    )


def read_post_norm(
    config: ConfigReader,
    architecture: str,
    *,
    names: EncoderNames,
    default_num_types: int,
    default_pad_token_id: int,
    first_position: int | None,
    head: ScoreHead | None,
) -> EncoderSpec:
    """The fields of BERT and those who follow it. A `first_position` of None is one behind the padding's id.

    Raises CheckpointError naming the field.
    """
    check_common(config)
    if config.raw("position_embedding_type") not in (None, "absolute"):
        raise config.error("position_embedding_type", f"is {config.raw('position_embedding_type')!r}, not absolute")
    if config.raw("is_decoder"):
        raise config.error("is_decoder", "is true: only encoders are supported")
    hidden_size, num_heads, head_dim = read_heads(config)
    num_layers = read_num_layers(config)
    num_positions = config.positive_int("max_position_embeddings", 512, maximum=MAX_POSITIONS)
    pad_token_id = read_pad_token_id(config, default_pad_token_id)
    if first_position is None:
        first_position = (default_pad_token_id if pad_token_id is None else pad_token_id) + 1
    if first_position >= num_positions:
        raise config.error("max_position_embeddings", f"({num_positions}) leaves no room behind {first_position - 1}")
    num_types = 0
    if default_num_types:
        num_types = config.positive_int("type_vocab_size", default_num_types, maximum=1024)
    return EncoderSpec(
        architecture=architecture,
        model_type=config.text("model_type"),
        vocab_size=config.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.positive_int("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        max_tokens=num_positions - first_position,
        norm_epsilon=config.positive_float("layer_norm_eps", 1e-12),
        activation=read_activation(config, "hidden_act", "gelu"),
        windows=(None,) * num_layers,
        ropes=(None,) * num_layers,
        num_positions=num_positions,
        first_position=first_position,
        num_types=num_types,
        names=names,
        head=head,
        pad_token_id=pad_token_id,
    )
