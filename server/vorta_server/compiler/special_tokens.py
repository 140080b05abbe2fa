"""The special tokens of a decoder's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from vorta_server.compiler.checkpoint import Checkpoint, check_tokenizer
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.spec import DecoderSpec

__all__ = ["SpecialTokens", "read_special_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Token ids; `eos` are those that end a generation, perhaps none."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def read_special_tokens(checkpoint: Checkpoint, config: ConfigReader, spec: DecoderSpec) -> SpecialTokens:
    """A decoder's special tokens; generation_config.json has the last word, as in the reference implementation.

    Raises CheckpointError for a tokenizer or a token that the model has no rows for.
    """
    check_tokenizer(checkpoint, spec.vocab_size)
    generation = ConfigReader(checkpoint.generation_config, checkpoint.folder / "generation_config.json")

    def token_ids(field: str) -> tuple[int, ...]:
        reader = generation if generation.has(field) else config
        ids = reader.token_ids(field)
        for token_id in ids:
            if token_id >= spec.vocab_size:
                raise reader.error(field, f"is {token_id}, but vocab_size is {spec.vocab_size}")
        return ids

    bos, pad = token_ids("bos_token_id"), token_ids("pad_token_id")
    return SpecialTokens(bos=bos[0] if bos else None, eos=token_ids("eos_token_id"), pad=pad[0] if pad else None)
