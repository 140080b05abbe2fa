"""The detokenizer over hand-written decoders; tokenization/test_streaming.py runs it on real tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.engine.detokenizer import ByteTableDecoder, Detokenizer


class ByteVocabulary:
    """256 tokens, one a byte; decoded by window."""

    def __init__(self) -> None:
        self.longest = 0

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        self.longest = max(self.longest, len(token_ids))
        return bytes(token_ids).decode("utf-8", "replace")


class ByteTableVocabulary(ByteVocabulary):
    """The same with a table."""

    def byte_table(self, skip_special_tokens: bool) -> Sequence[bytes] | None:
        return [bytes([byte]) for byte in range(256)]


class WordVocabulary:
    """Words with a leading space each; the first word of a decode loses its space, as with SentencePiece."""

    words = (" a", " be", "", "-", " ")

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[i] for i in token_ids).removeprefix(" ")


@settings(deadline=None)
@given(st.text(max_size=30))
def test_both_ways_give_the_text_in_whole_characters(text: str) -> None:
    for decoder in (ByteVocabulary(), ByteTableVocabulary()):
        detokenizer = Detokenizer(decoder, prompt_tail=[], skip_special_tokens=True)
        pieces = [detokenizer.add([byte]) for byte in text.encode()]
        assert "".join(pieces) + detokenizer.flush() == text
        if "\ufffd" not in text:
            assert "".join(pieces) == text


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_the_table_path_equals_a_decode_of_all_bytes(data: bytes) -> None:
    detokenizer = Detokenizer(ByteTableVocabulary(), prompt_tail=[], skip_special_tokens=True)
    text = "".join(detokenizer.add([byte]) for byte in data) + detokenizer.flush()
    assert text == data.decode("utf-8", "replace")


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_the_window_stays_short(data: bytes) -> None:
    decoder = ByteVocabulary()
    detokenizer = Detokenizer(decoder, prompt_tail=[], skip_special_tokens=True)
    for byte in data:
        detokenizer.add([byte])
    detokenizer.flush()
    assert decoder.longest <= 16


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1), st.lists(st.integers(0, 4)))
def test_leading_spaces_survive(prompt: list[int], token_ids: list[int]) -> None:
    prompt = [0, *prompt, 0]
    decoder = WordVocabulary()
    detokenizer = Detokenizer(decoder, prompt_tail=prompt[-8:], skip_special_tokens=True)
    text = "".join(detokenizer.add([token_id]) for token_id in token_ids) + detokenizer.flush()
    assert decoder.decode(prompt, True) + text == decoder.decode(prompt + token_ids, True)


def test_a_character_that_the_prompt_left_incomplete() -> None:
    for decoder in (ByteVocabulary(), ByteTableVocabulary()):
        detokenizer = Detokenizer(decoder, prompt_tail=list("aé".encode()[:-1]), skip_special_tokens=True)
        assert detokenizer.add(list("é".encode()[1:] + b"b")).endswith("b")


def test_a_table_is_recognised() -> None:
    assert isinstance(ByteTableVocabulary(), ByteTableDecoder)
    assert not isinstance(ByteVocabulary(), ByteTableDecoder)
