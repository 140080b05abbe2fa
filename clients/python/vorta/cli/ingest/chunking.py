"""Cuts texts into chunks that an embedding model can take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vorta.cli.ingest.missing import MissingPackage
from vorta.errors import InvalidArgument

DEFAULT_CHUNK_TOKENS = 200

# Pieces of four letters, of three digits, and every other sign: more than tokenizers of words make of most texts.
_ESTIMATED_TOKEN = re.compile(r"[A-Za-z]{1,4}|[0-9]{1,3}|\S")


class Chunker:
    """Cuts at the largest units that fit: sections, paragraphs, sentences, words; Markdown by its own structure.

    Args:
        max_tokens: Most tokens of a chunk; None when `max_chars` is given.
        max_chars: Most characters of a chunk.
        overlap: How much of a chunk's end the next one repeats, in the same unit.
        tokenizer: A tokenizer.json that counts tokens; without it they are estimated, rather too many than too few.

    Raises MissingPackage, and InvalidArgument for a bound that makes no sense or an unreadable tokenizer.
    """

    def __init__(
        self, *, max_tokens: int | None, max_chars: int | None, overlap: int, tokenizer: Path | None = None
    ) -> None:
        capacity = max_chars or max_tokens or DEFAULT_CHUNK_TOKENS
        if not 0 <= overlap < capacity:
            raise InvalidArgument(f"overlap must be at least 0 and less than {capacity}", field="overlap")
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError:
            raise MissingPackage("semantic-text-splitter") from None
        self.description = f"{'chars' if max_chars else 'tokens'} {capacity} {overlap}"
        tokenizer_json = None
        if tokenizer is not None and not max_chars:
            try:
                tokenizer_json = tokenizer.read_text("utf-8")
            except (OSError, ValueError) as exc:
                raise InvalidArgument(f"cannot read the tokenizer {tokenizer}: {exc}", field="tokenizer") from None
            self.description += f" {hashlib.sha256(tokenizer_json.encode()).hexdigest()}"

        def new(kind: Any) -> Any:
            if max_chars:
                return kind(capacity, overlap)
            if tokenizer_json is None:
                return kind.from_callback(estimate_tokens, capacity, overlap)
            return kind.from_huggingface_tokenizer_str(tokenizer_json, capacity, overlap)

        try:
            self._text, self._markdown = new(TextSplitter), new(MarkdownSplitter)
        except Exception as exc:  # the library raises Exception itself for a file that is no tokenizer
            raise InvalidArgument(f"{tokenizer} is no tokenizer: {exc}", field="tokenizer") from None

    def chunks(self, text: str, *, is_markdown: bool) -> Sequence[str]:
        """The text's chunks, without white space around them, none empty."""
        splitter = self._markdown if is_markdown else self._text
        return [chunk for chunk in splitter.chunks(text) if chunk.strip()]


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return len(_ESTIMATED_TOKEN.findall(text))
