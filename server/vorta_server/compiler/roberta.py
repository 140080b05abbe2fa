"""RoBERTa (arXiv 1907.11692) and XLM-RoBERTa (arXiv 1911.02116), as encoders and as cross-encoders.

They are BERT with positions that count from one behind the padding's id.
"""

from __future__ import annotations

from vorta_server.compiler.bert import bert_names, read_post_norm
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder_spec import EncoderSpec, ScoreHead, read_num_labels, read_uses_sigmoid

EMBEDDING_ARCHITECTURES = ("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM")
SCORE_ARCHITECTURES = ("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification")


def read_roberta(config: ConfigReader, architecture: str) -> EncoderSpec:
    """`pad_token_id` (1) decides where positions begin; most models have one token type."""
    is_scoring = architecture in SCORE_ARCHITECTURES
    ignored = r"lm_head\..*|(roberta\.)?pooler\..*"
    return read_post_norm(
        config,
        architecture,
        names=bert_names("roberta.", ignored=ignored),
        default_num_types=2,
        default_pad_token_id=1,
        first_position=None,
        head=_read_head(config) if is_scoring else None,
    )


def _read_head(config: ConfigReader) -> ScoreHead:
    num_labels = read_num_labels(config)
    return ScoreHead(
        num_labels=num_labels,
        pooling="cls",
        dense="classifier.dense",
        activation="tanh",
        classifier="classifier.out_proj",
        uses_sigmoid=read_uses_sigmoid(config, num_labels),
    )
