"""From a configuration's architecture to the family that reads it. The one place to add a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vorta_server.compiler import bert, llama, mistral, modernbert, mpnet, qwen2, qwen3, qwen3_embedding, roberta
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder_spec import EncoderSpec
from vorta_server.compiler.spec import DecoderSpec

FAMILIES: Mapping[str, Callable[[ConfigReader], DecoderSpec]] = {
    llama.ARCHITECTURE: llama.read_llama,
    mistral.ARCHITECTURE: mistral.read_mistral,
    qwen2.ARCHITECTURE: qwen2.read_qwen2,
    qwen3.ARCHITECTURE: qwen3.read_qwen3,
}

ENCODER_FAMILIES: Mapping[str, Callable[[ConfigReader, str], EncoderSpec]] = {
    **dict.fromkeys((*bert.EMBEDDING_ARCHITECTURES, *bert.SCORE_ARCHITECTURES), bert.read_bert),
    **dict.fromkeys((*roberta.EMBEDDING_ARCHITECTURES, *roberta.SCORE_ARCHITECTURES), roberta.read_roberta),
    **dict.fromkeys(mpnet.EMBEDDING_ARCHITECTURES, mpnet.read_mpnet),
    **dict.fromkeys((*modernbert.EMBEDDING_ARCHITECTURES, *modernbert.SCORE_ARCHITECTURES), modernbert.read_modernbert),
    **dict.fromkeys(qwen3_embedding.EMBEDDING_ARCHITECTURES, qwen3_embedding.read_qwen3_embedding),
}


def is_encoder(config: ConfigReader, *, has_modules: bool) -> bool:
    """Whether the checkpoint is a text encoder's and not a decoder's that generates.

    `has_modules`: sentence-transformers' modules.json lies beside it, which makes an encoder of a decoder.
    """
    architecture = _architecture(config)
    return has_modules or (architecture in ENCODER_FAMILIES and architecture not in FAMILIES)


def read_encoder(config: ConfigReader) -> EncoderSpec:
    """The encoder that the configuration describes.

    Raises CheckpointError naming the field, with the architecture's name when it is unknown.
    """
    architecture = _architecture(config)
    read = ENCODER_FAMILIES.get(architecture)
    if read is None:
        raise config.error(
            "architectures", f"is {architecture!r}; supported as encoders are {', '.join(ENCODER_FAMILIES)}"
        )
    return read(config, architecture)


def read_spec(config: ConfigReader) -> DecoderSpec:
    """The decoder that the configuration describes.

    Raises CheckpointError naming the field, with the architecture's name when it is unknown.
    """
    architecture = _architecture(config)
    read = FAMILIES.get(architecture)
    if read is None:
        supported = ", ".join([*FAMILIES, *ENCODER_FAMILIES])
        raise config.error("architectures", f"is {architecture!r}; supported are {supported}")
    return read(config)


def _architecture(config: ConfigReader) -> str:
    architectures = config.raw("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise config.error("architectures", f"must name the model's architecture, not {architectures!r}")
    return architectures[0]
