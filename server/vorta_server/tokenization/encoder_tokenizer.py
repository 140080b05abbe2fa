"""Texts and pairs of texts to an encoder's token ids, cut to its length where that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from vorta.errors import FailedPrecondition

__all__ = ["EncodedText", "EncoderTokenizer"]


@dataclass(slots=True, kw_only=True)
class EncodedText:
    """A text's tokens, special tokens included.

    Attributes:
        token_ids: int32 [S].
        token_types: int32 [S], which of a pair's texts a token is of; None where all are 0.
        num_cut: Tokens that were cut off.
        num_tokens: Tokens before cutting; more than the model takes and `num_cut` 0 means: too long.
    """

    token_ids: NDArray[np.int32]
    token_types: NDArray[np.int32] | None
    num_cut: int
    num_tokens: int


class EncoderTokenizer:
    """The tokenizer of an encoder. Thread-safe: nothing changes after the construction.

    Args:
        folder: Holds tokenizer.json.
        max_tokens: Most tokens of an input, special tokens included.

    Raises:
        FailedPrecondition: tokenizer.json is missing or unreadable (CHECKPOINT_INVALID).
    """

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise FailedPrecondition(f"{path} cannot be read: {error}", reason="CHECKPOINT_INVALID") from error
        # A checkpoint may come with its training's truncation and padding.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        self._num_special = self._tokenizer.num_special_tokens_to_add(False)
        self._num_pair_special = self._tokenizer.num_special_tokens_to_add(True)

    def encode(self, texts: Sequence[str], *, truncate: str = "", max_tokens: int = 0) -> list[EncodedText]:
        """The tokens of each text.

        Args:
            truncate: "right" or "left": the end of a long text that is cut; empty: it is left as it is, too long.
            max_tokens: Cut to so many, special tokens not counted, where that is fewer than the model takes; 0 for what
                it takes.
        """
        limit = self.max_tokens
        if max_tokens:
            limit = min(limit, max_tokens + self._num_special)
        return [self._encode_one(encoding, truncate, limit) for encoding in self._split(texts)]

    def encode_pairs(self, query: str, documents: Sequence[str], *, max_tokens_per_doc: int = 0) -> list[EncodedText]:
        """The tokens of the query with each document; documents are cut at their end to fit.

        The query itself is cut only when it leaves less than half of the model's length to documents.
        """
        (query_encoding,) = self._split([query])
        room = self.max_tokens - self._num_pair_special
        query_cut = max(0, len(query_encoding.ids) - max(room // 2, 1))
        if query_cut:
            query_encoding.truncate(len(query_encoding.ids) - query_cut)
        limit = max(1, room - len(query_encoding.ids))
        if max_tokens_per_doc:
            limit = min(limit, max_tokens_per_doc)
        results = []
        for encoding in self._split(documents):
            num_tokens = len(encoding.ids)
            if num_tokens > limit:
                encoding.truncate(limit)
            pair = self._tokenizer.post_process(query_encoding, encoding)
            types = np.asarray(pair.type_ids, np.int32)
            results.append(
                EncodedText(
                    token_ids=np.asarray(pair.ids, np.int32),
                    token_types=types if types.any() else None,
                    num_cut=query_cut + num_tokens - min(num_tokens, limit),
                    num_tokens=len(pair.ids),
                )
            )
        return results

    def _split(self, texts: Sequence[str]) -> list[Any]:
        if len(texts) == 1:  # a batch of one would wake the library's threads for nothing
            return [self._tokenizer.encode(texts[0], add_special_tokens=False)]
        encodings: list[Any] = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return encodings

    def _encode_one(self, encoding: Any, truncate: str, limit: int) -> EncodedText:
        num_tokens = len(encoding.ids) + self._num_special
        num_cut = 0
        if truncate and num_tokens > limit:
            num_cut = num_tokens - limit
            encoding.truncate(limit - self._num_special, direction=truncate)
        if self._num_special:
            encoding = self._tokenizer.post_process(encoding)
        return EncodedText(
            token_ids=np.asarray(encoding.ids, np.int32), token_types=None, num_cut=num_cut, num_tokens=num_tokens
        )
