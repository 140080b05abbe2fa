"""Tiny checkpoints of every encoder family with odd shapes, made on the fly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.server.compiler.case import write_checkpoint

VOCAB_SIZE = 89
MAX_TOKENS = 170

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCase:
    """A configuration, what stands before its tensors' names, and files of sentence-transformers beside it."""

    name: str
    config: dict[str, Any]
    prefix: str = ""
    files: dict[str, Any] = field(default_factory=dict)
    has_extra: bool = False  # tensors of a head of pretraining


def _bert(name: str, *, prefix: str = "", has_extra: bool = False, **config: Any) -> EncoderCase:
    values = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        **config,
    }
    return EncoderCase(name=name, config=values, prefix=prefix, has_extra=has_extra)


def _roberta(name: str, architecture: str, **config: Any) -> EncoderCase:
    shape = {
        "architectures": [architecture],
        "model_type": "xlm-roberta" if architecture.startswith("XLM") else "roberta",
        "max_position_embeddings": MAX_TOKENS + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }
    prefix = "" if architecture.endswith("Model") else "roberta."
    return _bert(name, prefix=prefix, **{**shape, **config})


def _modernbert(name: str, *, prefix: str = "", **config: Any) -> EncoderCase:
    values = {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 72,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "norm_eps": 1e-5,
        "local_attention": 12,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
        **config,
    }
    return EncoderCase(name=name, config=values, prefix=prefix)


def modules(*kinds: str) -> list[dict[str, Any]]:
    """modules.json for the classes of these names."""
    folders = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    return [
        {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
    ]


_LAST_TOKEN = {
    "modules.json": modules("Transformer", "Pooling", "Normalize"),
    "1_Pooling/config.json": {"word_embedding_dimension": 64, "pooling_mode_lasttoken": True, "include_prompt": True},
    "config_sentence_transformers.json": {
        "prompts": {"query": "Instruct: search\nQuery:", "document": ""},
        "default_prompt_name": None,
    },
}


def _qwen3(name: str, architecture: str, *, prefix: str, **config: Any) -> EncoderCase:
    values = {
        "architectures": [architecture],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        **config,
    }
    return EncoderCase(name=name, config=values, prefix=prefix, files=_LAST_TOKEN)


_MPNET = {"model_type": "mpnet", "max_position_embeddings": MAX_TOKENS + 2, "layer_norm_eps": 1e-5, "pad_token_id": 1}

EMBEDDING_CASES = [
    _bert("bert"),
    _bert("bert-masked-lm", prefix="bert.", has_extra=True, architectures=["BertForMaskedLM"], hidden_act="gelu_new"),
    _bert("bert-head-of-32", hidden_size=64, num_attention_heads=2, num_hidden_layers=2, hidden_act="relu"),
    _roberta("roberta-masked-lm", "RobertaForMaskedLM"),
    _roberta("xlm-roberta", "XLMRobertaModel"),
    _bert("mpnet", architectures=["MPNetModel"], **_MPNET),
    _modernbert("modernbert"),
    _modernbert("modernbert-masked-lm", prefix="model.", architectures=["ModernBertForMaskedLM"], norm_bias=True),
    _qwen3("qwen3-bare", "Qwen3Model", prefix=""),
    _qwen3("qwen3-causal-lm", "Qwen3ForCausalLM", prefix="model.", num_key_value_heads=1, attention_bias=True),
]

SCORE_CASES = [
    _bert(
        "bert-score",
        prefix="bert.",
        architectures=["BertForSequenceClassification"],
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
    ),
    _roberta(
        "xlm-roberta-score",
        "XLMRobertaForSequenceClassification",
        id2label={str(index): f"L{index}" for index in range(3)},
        label2id={f"L{index}": index for index in range(3)},
    ),
    _modernbert(
        "modernbert-score-mean",
        prefix="model.",
        architectures=["ModernBertForSequenceClassification"],
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
        classifier_pooling="mean",
    ),
    _modernbert(
        "modernbert-score-cls",
        prefix="model.",
        architectures=["ModernBertForSequenceClassification"],
        id2label={"0": "a", "1": "b"},
        label2id={"a": 0, "b": 1},
        classifier_bias=True,
        norm_bias=True,
    ),
]


def encoder_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """The encoder's tensors, without a prefix."""
    return _Maker(config, seed).tensors


def head_tensors(config: dict[str, Any], seed: int = 1) -> Tensors:
    """The tensors of a head that scores, under their full names; {} for a configuration without one."""
    rng = np.random.default_rng(seed)
    hidden, labels = config["hidden_size"], len(config.get("id2label", ()))
    names = {
        "bert": ("bert.pooler.dense", "classifier"),
        "modernbert": ("head.dense", "classifier"),
    }.get(config["model_type"], ("classifier.dense", "classifier.out_proj"))
    if not labels:
        return {}
    tensors: Tensors = {
        f"{names[0]}.weight": rng.normal(0, 1.3 / hidden**0.5, (hidden, hidden)),
        f"{names[1]}.weight": rng.normal(0, 1.3 / hidden**0.5, (labels, hidden)),
        f"{names[1]}.bias": rng.normal(0, 0.2, labels),
    }
    if config["model_type"] != "modernbert" or config.get("classifier_bias"):
        tensors[f"{names[0]}.bias"] = rng.normal(0, 0.2, hidden)
    if config["model_type"] == "modernbert":
        tensors["head.norm.weight"] = rng.normal(1, 0.2, hidden)
        if config.get("norm_bias"):
            tensors["head.norm.bias"] = rng.normal(0, 0.2, hidden)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def case_tensors(case: EncoderCase) -> Tensors:
    """All tensors of the case's checkpoint."""
    tensors = {f"{case.prefix}{name}": value for name, value in encoder_tensors(case.config).items()}
    tensors |= head_tensors(case.config)
    if case.has_extra:
        tensors["cls.predictions.bias"] = np.zeros(VOCAB_SIZE, np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(MAX_TOKENS)[None]
    return tensors


def write_encoder(folder: Path, case: EncoderCase, tensors: Tensors | None = None) -> Path:
    """Writes the case's checkpoint."""
    write_checkpoint(folder, case.config, case_tensors(case) if tensors is None else tensors)
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def texts(lengths: list[int], seed: int = 5) -> list[npt.NDArray[np.int32]]:
    """Random token ids of these lengths; none is a padding's id, which some families treat apart."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCAB_SIZE, length).astype(np.int32) for length in lengths]


class _Maker:
    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.tensors: Tensors = {}
        {"modernbert": self._modernbert, "qwen3": self._qwen3}.get(config["model_type"], self._bert)(config)
        self.tensors = {name: value.astype(np.float32) for name, value in self.tensors.items()}

    def _linear(self, name: str, num_rows: int, num_columns: int, biased: bool = True) -> None:
        self.tensors[f"{name}.weight"] = self._rng.normal(0, 1.3 / num_columns**0.5, (num_rows, num_columns))
        if biased:
            self.tensors[f"{name}.bias"] = self._rng.normal(0, 0.2, num_rows)

    def _norm(self, name: str, size: int, biased: bool = True) -> None:
        self.tensors[f"{name}.weight"] = self._rng.normal(1, 0.2, size)
        if biased:
            self.tensors[f"{name}.bias"] = self._rng.normal(0, 0.2, size)

    def _table(self, name: str, num_rows: int, size: int, scale: float = 1.0) -> None:
        self.tensors[f"{name}.weight"] = self._rng.normal(0, scale, (num_rows, size))

    def _bert(self, config: dict[str, Any]) -> None:
        hidden, inner, is_mpnet = config["hidden_size"], config["intermediate_size"], config["model_type"] == "mpnet"
        self._table("embeddings.word_embeddings", config["vocab_size"], hidden)
        self._table("embeddings.position_embeddings", config["max_position_embeddings"], hidden)
        names = ("attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm")
        if is_mpnet:
            self._table("encoder.relative_attention_bias", 32, config["num_attention_heads"])
        else:
            self._table("embeddings.token_type_embeddings", config["type_vocab_size"], hidden)
            names = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
        self._norm("embeddings.LayerNorm", hidden)
        for layer in range(config["num_hidden_layers"]):
            prefix = f"encoder.layer.{layer}"
            for name in names[:4]:
                self._linear(f"{prefix}.attention.{name}", hidden, hidden)
            self._norm(f"{prefix}.attention.{names[4]}", hidden)
            self._linear(f"{prefix}.intermediate.dense", inner, hidden)
            self._linear(f"{prefix}.output.dense", hidden, inner)
            self._norm(f"{prefix}.output.LayerNorm", hidden)

    def _modernbert(self, config: dict[str, Any]) -> None:
        hidden, inner, biased = config["hidden_size"], config["intermediate_size"], config.get("norm_bias", False)
        self._table("embeddings.tok_embeddings", config["vocab_size"], hidden)
        self._norm("embeddings.norm", hidden, biased)
        for layer in range(config["num_hidden_layers"]):
            prefix = f"layers.{layer}"
            if layer:
                self._norm(f"{prefix}.attn_norm", hidden, biased)
            self._linear(f"{prefix}.attn.Wqkv", 3 * hidden, hidden, False)
            self._linear(f"{prefix}.attn.Wo", hidden, hidden, False)
            self._norm(f"{prefix}.mlp_norm", hidden, biased)
            self._linear(f"{prefix}.mlp.Wi", 2 * inner, hidden, False)
            self._linear(f"{prefix}.mlp.Wo", hidden, inner, False)
        self._norm("final_norm", hidden, biased)

    def _qwen3(self, config: dict[str, Any]) -> None:
        hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
        biased = config.get("attention_bias", False)
        self._table("embed_tokens", config["vocab_size"], hidden)
        for layer in range(config["num_hidden_layers"]):
            prefix = f"layers.{layer}"
            for name, size in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
                self._linear(f"{prefix}.self_attn.{name}", size, hidden, biased)
            self._linear(f"{prefix}.self_attn.o_proj", hidden, query, biased)
            for name in ("q_norm", "k_norm"):
                self._norm(f"{prefix}.self_attn.{name}", dim, False)
            for name in ("input_layernorm", "post_attention_layernorm"):
                self._norm(f"{prefix}.{name}", hidden, False)
            self._linear(f"{prefix}.mlp.gate_proj", inner, hidden, False)
            self._linear(f"{prefix}.mlp.up_proj", inner, hidden, False)
            self._linear(f"{prefix}.mlp.down_proj", hidden, inner, False)
        self._norm("norm", hidden, False)
