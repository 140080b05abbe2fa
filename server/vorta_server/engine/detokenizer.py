"""Turns tokens into text as they come, without ever emitting a part of a character.

Two ways, chosen by what the decoder offers:

- Byte-level tokenizers have a table from token to bytes; an incremental UTF-8 decoder keeps what is incomplete. A
  dictionary look-up and a decode of a few bytes per token.
- Any other: the text of a window of tokens with the new one, less the text of the window before. The window starts
  at the tokens of the previous piece of text, so that a decoder that treats the first token specially (SentencePiece
  drops its leading space) treats both alike, and it stays short, so that the cost of a token does not grow with the
  text. This is the prefix-offset and read-offset method of Hugging Face's text-generation-inference, which vLLM uses
  as well.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

__all__ = ["ByteTableDecoder", "Detokenizer", "TokenDecoder"]

_REPLACEMENT = "\ufffd"

_MAX_PENDING_TOKENS = 8
"""A character has at most four bytes, hence four tokens; more that end in U+FFFD are not about to become one."""

_make_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class TokenDecoder(Protocol):
    """The part of a tokenizer that a detokenizer needs."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of the tokens together; bytes that are not UTF-8 become U+FFFD."""
        ...


@runtime_checkable
class ByteTableDecoder(Protocol):
    """A decoder whose text may be the concatenation of its tokens' bytes."""

    def byte_table(self, skip_special_tokens: bool) -> Sequence[bytes] | None:
        """The bytes of each token id (empty for one that is skipped); None when tokens do not simply concatenate."""
        ...


class Detokenizer:
    """The text of one sequence, piece by piece.

    The pieces, joined, equal what the decoder makes of all tokens after the prompt, save that text already emitted is
    never taken back where a decoder would (invalid bytes after a complete character).

    Args:
        decoder: The tokenizer; its `byte_table` is used when it has one.
        prompt_tail: The prompt's last few tokens. They give the first token its context (a leading space), and a
            character that the prompt left incomplete is completed by the first tokens.
        skip_special_tokens: Whether special tokens leave no text.
    """

    __slots__ = ("_decoder", "_pending", "_prefix", "_prefix_text", "_skip", "_table", "_utf8")

    def __init__(self, decoder: TokenDecoder, *, prompt_tail: Sequence[int], skip_special_tokens: bool) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._table = decoder.byte_table(skip_special_tokens) if isinstance(decoder, ByteTableDecoder) else None
        self._prefix: list[int] = []
        self._pending: list[int] = []
        self._prefix_text: str | None = None
        if self._table is not None:
            self._utf8 = _make_utf8_decoder("replace")
            self._utf8.decode(self._bytes_of(prompt_tail, self._table))
        else:
            self._prefix = list(prompt_tail)

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        table = self._table
        if table is not None:
            return self._utf8.decode(self._bytes_of(token_ids, table))
        if len(token_ids) == 1:
            return self._add_to_window(token_ids[0])
        return "".join([self._add_to_window(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """The rest, when no more tokens come: U+FFFD for a character that stayed incomplete."""
        if self._table is not None:
            return self._utf8.decode(b"", final=True)
        return self._take(self._decoder.decode(self._prefix + self._pending, self._skip)) if self._pending else ""

    @staticmethod
    def _bytes_of(token_ids: Sequence[int], table: Sequence[bytes]) -> bytes:
        # A model's vocabulary may be larger than its tokenizer's (padding); such ids have no text.
        if len(token_ids) == 1:
            token_id = token_ids[0]
            return table[token_id] if token_id < len(table) else b""
        return b"".join([table[i] for i in token_ids if i < len(table)])

    def _add_to_window(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._decoder.decode(self._prefix + self._pending, self._skip)
        if text.endswith(_REPLACEMENT) and len(self._pending) < _MAX_PENDING_TOKENS:
            return ""
        if len(text) <= len(self._text_before()):
            if len(self._pending) >= _MAX_PENDING_TOKENS:
                self._pending.clear()  # tokens without text, such as skipped special ones
            return ""
        return self._take(text)

    def _text_before(self) -> str:
        if self._prefix_text is None:
            self._prefix_text = self._decoder.decode(self._prefix, self._skip)
        return self._prefix_text

    def _take(self, text: str) -> str:
        """Emits the window's new text and starts the next window at the tokens that made it."""
        before = self._text_before()
        # Invalid bytes may change what was emitted before: then the new tokens are taken for themselves.
        is_continued = text.startswith(before)
        piece = text[len(before) :] if is_continued else self._decoder.decode(self._pending, self._skip)
        self._prefix, self._pending, self._prefix_text = self._pending, [], None
        return piece
