"""From a configuration's architecture to the family that reads it. The one place to add a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vorta_server.compiler import llama, mistral, qwen2, qwen3
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.spec import DecoderSpec

FAMILIES: Mapping[str, Callable[[ConfigReader], DecoderSpec]] = {
    llama.ARCHITECTURE: llama.read_llama,
    mistral.ARCHITECTURE: mistral.read_mistral,
    qwen2.ARCHITECTURE: qwen2.read_qwen2,
    qwen3.ARCHITECTURE: qwen3.read_qwen3,
}


def read_spec(config: ConfigReader) -> DecoderSpec:
    """The decoder that the configuration describes.

    Raises CheckpointError naming the field, with the architecture's name when it is unknown.
    """
    architectures = config.raw("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise config.error("architectures", f"must name the model's architecture, not {architectures!r}")
    read = FAMILIES.get(architectures[0])
    if read is None:
        raise config.error("architectures", f"is {architectures[0]!r}; supported are {', '.join(FAMILIES)}")
    return read(config)
