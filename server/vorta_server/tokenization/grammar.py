"""Grammars over a model's tokens: compiled once, then a small state for each sequence, which gives the bitmask of what
may follow. The matcher is llguidance, which nothing else but `grammar_check` knows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import llguidance
import msgspec
import numpy as np
from numpy.typing import NDArray

from vorta.errors import FailedPrecondition, InvalidArgument, VortaError
from vorta_server.tokenization.grammar_check import GrammarChecker, parser_limits
from vorta_server.tokenization.grammar_text import FormatLike, GrammarText, grammar_text, schema_text
from vorta_server.tokenization.message import ToolSpecLike
from vorta_server.tokenization.tokenizer import Tokenizer

__all__ = ["CompiledGrammar", "GrammarCompiler", "GrammarState"]

Bits = NDArray[np.int32]

_MAX_CACHED = 64


class GrammarState:
    """What one sequence has of a grammar.

    Args:
        matcher: Of this sequence alone, without tokens.
        first_mask: What the first token may be.
        field: The request's field that the grammar comes from.

    Attributes:
        is_complete: Whether nothing but an end-of-sequence token may follow.
    """

    __slots__ = ("_field", "_first_mask", "_matcher", "is_complete")

    def __init__(self, matcher: llguidance.LLMatcher, first_mask: Bits, field: str) -> None:
        self._matcher = matcher
        self._first_mask: Bits | None = first_mask
        self._field = field
        self.is_complete = False

    @property
    def failure(self) -> VortaError | None:
        """Why no token may follow; None when some may."""
        matcher = self._matcher
        if any(matcher.compute_bitmask()) and not matcher.is_error():
            return None
        why = matcher.get_error().strip().partition("\n")[0][:200]
        if why and not why.startswith("NoExtension"):
            message = f"{self._field} is too complex to go on with this text: {why}"
        else:
            message = f"{self._field}: the model's vocabulary has no token with which this text can go on"
        return InvalidArgument(message, reason="INVALID_FIELD", field=self._field)

    def fill_mask(self, mask: Bits) -> None:
        """Writes what may follow; end-of-sequence tokens may exactly where the text is whole."""
        if self._first_mask is not None:
            mask[:] = self._first_mask
            return
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            mask[:] = 0

    def accept(self, token_id: int) -> None:
        """Takes the sequence's next token."""
        self._first_mask = None
        matcher = self._matcher
        matcher.consume_token(token_id)
        self.is_complete = matcher.is_stopped() and not matcher.is_error()


class CompiledGrammar:
    """A grammar over one model's tokens. Thread-safe.

    Args:
        matcher: Without tokens; it is copied, and the copies share what they find out about the grammar.
        vocab_size: Of the model.
        field: The request's field that the grammar comes from.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, field: str) -> None:
        self._matcher = matcher
        self._field = field
        self._first_mask: Bits = np.zeros(-(-vocab_size // 32), np.int32)
        matcher.unsafe_compute_mask_ptr(self._first_mask.ctypes.data, self._first_mask.nbytes)

    def start(self) -> GrammarState:
        """The state of a sequence without tokens."""
        return GrammarState(self._matcher.deep_copy(), self._first_mask, self._field)


class GrammarCompiler:
    """Compiles the formats of requests, and keeps the last ones. Thread-safe.

    Args:
        tokenizer: The model's.
        vocab_size: Of the model; tokens that the tokenizer does not have are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._checker = GrammarChecker()
        self._cache: OrderedDict[bytes, CompiledGrammar] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._tokens: llguidance.LLTokenizer | None = None

    def find(self, output_format: FormatLike, tools: Sequence[ToolSpecLike] = ()) -> CompiledGrammar | None:
        """The grammar if it was compiled before. Takes microseconds."""
        return self._find(_key(output_format, tools))

    def compile(self, output_format: FormatLike, tools: Sequence[ToolSpecLike] = ()) -> CompiledGrammar:
        """The grammar. Takes from a millisecond to seconds.

        Raises:
            InvalidArgument: The format cannot be read, says what cannot be guaranteed, or is too complex; names the
                field.
            FailedPrecondition: The model has no end-of-sequence token.
        """
        key = _key(output_format, tools)
        found = self._find(key)
        if found is not None:
            return found
        if output_format.kind == "tool_call":
            for position, tool in enumerate(tools):  # each alone first: an error should say which
                self._checker.check(schema_text(tool.parameters, f"tools[{position}].parameters"))
        grammar = self._compile(grammar_text(output_format, tools, self._tokenizer.tool_call_style))
        with self._cache_lock:
            self._cache[key] = grammar
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def close(self) -> None:
        """Ends the process that tries grammars. Idempotent."""
        self._checker.close()

    def _find(self, key: bytes) -> CompiledGrammar | None:
        with self._cache_lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
            return found

    def _compile(self, text: GrammarText) -> CompiledGrammar:
        grammar = self._checker.check(text)
        if self._tokens is None:
            self._tokens = _library_tokenizer(self._tokenizer, self._vocab_size)
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0, limits=parser_limits())
        if matcher.is_error():
            why = matcher.get_error().strip()[:500]
            raise InvalidArgument(f"{text.field}: {why}", reason="INVALID_FIELD", field=text.field)
        compiled = CompiledGrammar(matcher, self._vocab_size, text.field)
        failure = compiled.start().failure
        if failure is not None:
            raise failure
        return compiled


def _key(output_format: FormatLike, tools: Sequence[ToolSpecLike]) -> bytes:
    parts: list[object] = [output_format.kind, output_format.text, list(output_format.choices)]
    if output_format.kind == "tool_call":
        parts += [(tool.name, tool.parameters) for tool in tools]
    return msgspec.msgpack.encode(parts)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted(token_id for token_id in tokenizer.special_token_ids if token_id < vocab_size)
        special = set(self.special_token_ids)
        self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in special}
        self._max_bytes = max(map(len, self._ids), default=1)
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text in the middle of others: with them the library writes what only one text can follow."""
        token_ids = self._tokenizer.encode(text.decode("utf-8", "replace"), False)
        if b"".join(self.tokens[token_id] for token_id in token_ids if token_id < len(self.tokens)) == text:
            return token_ids
        return self._longest(text)  # the tokenizer adds a space in front, or changes characters

    def _longest(self, text: bytes) -> list[int]:
        """The text by the longest tokens, up to where there is none."""
        token_ids: list[int] = []
        start = 0
        while start < len(text):
            longest = min(len(text), start + self._max_bytes)
            parts = (text[start:end] for end in range(longest, start, -1))
            found = next((self._ids[part] for part in parts if part in self._ids), None)
            if found is None:
                break
            token_ids.append(found)
            start += len(self.tokens[found])
        return token_ids


def _library_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> llguidance.LLTokenizer:
    ends = [token_id for token_id in tokenizer.eos_token_ids if token_id < vocab_size]
    if not ends:
        raise FailedPrecondition("the model has no end-of-sequence token, which a response format needs")
    wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, ends[0]))
    return llguidance.LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=ends)
