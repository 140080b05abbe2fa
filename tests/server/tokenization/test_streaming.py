"""The detokenizer on real tokenizers: its pieces, joined, are the text, and no piece holds a broken character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.engine.detokenizer import Detokenizer
from vorta_server.tokenization.tokenizer import Tokenizer

texts = st.one_of(
    st.text(max_size=40),
    st.text("aé東🙂 \n▁‍", max_size=20),
    st.sampled_from(["The quick brown fox", " leading space", "two  spaces ", "👩‍👩‍👧🚀", "naïve café 東京"]),
)


class Plain:
    """A decoder without a byte table: takes the window path."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._tokenizer._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def pieces_of(
    decoder: Plain | Tokenizer, token_ids: Sequence[int], *, tail: Sequence[int] = (), skip: bool = True
) -> list[str]:
    detokenizer = Detokenizer(decoder, prompt_tail=tail, skip_special_tokens=skip)
    return [detokenizer.add([token_id]) for token_id in token_ids] + [detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_pieces_join_to_the_text(byte_level: Tokenizer, sentencepiece: Tokenizer, text: str) -> None:
    for tokenizer in (byte_level, sentencepiece):
        token_ids = tokenizer.encode(text)
        for decoder in (tokenizer, Plain(tokenizer)):
            pieces = pieces_of(decoder, token_ids)
            assert "".join(pieces) == tokenizer.decode(token_ids)
            if "\ufffd" not in text:
                assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(prompt=texts, text=texts)
def test_text_after_a_prompt_keeps_its_leading_space(
    byte_level: Tokenizer, sentencepiece: Tokenizer, prompt: str, text: str
) -> None:
    for tokenizer in (byte_level, sentencepiece):
        head, tail = tokenizer.encode("x" + prompt), tokenizer.encode(text)
        whole = tokenizer.decode(head + tail)
        for decoder in (tokenizer, Plain(tokenizer)):
            pieces = pieces_of(decoder, tail, tail=head[-8:])
            assert tokenizer.decode(head) + "".join(pieces) == whole


@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_of_a_byte_level_vocabulary(byte_level: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=30)
    token_ids = data.draw(ids)
    whole = byte_level._tokenizer.decode(token_ids, skip_special_tokens=skip)
    assert byte_level.decode(token_ids, skip) == whole
    assert "".join(pieces_of(byte_level, token_ids, skip=skip)) == whole


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_never_raise_and_the_window_stays_short(sentencepiece: Tokenizer, data: st.DataObject) -> None:
    token_ids = data.draw(st.lists(st.integers(0, sentencepiece.vocab_size - 1), max_size=40))
    detokenizer = Detokenizer(Plain(sentencepiece), prompt_tail=[], skip_special_tokens=True)
    for token_id in token_ids:
        detokenizer.add([token_id])
        assert len(detokenizer._prefix) <= 8
        assert len(detokenizer._pending) <= 8
    detokenizer.flush()


@pytest.mark.parametrize("plain", [False, True])
def test_a_character_comes_out_when_it_is_complete(byte_level: Tokenizer, plain: bool) -> None:
    decoder = Plain(byte_level) if plain else byte_level
    ids = [byte_level.token_id(c) for c in ("a", "ð", "Ł", "Ķ", "Ģ", "b")]
    assert pieces_of(decoder, [i for i in ids if i is not None]) == ["a", "", "", "", "🔀", "b", ""]


@pytest.mark.parametrize("plain", [False, True])
def test_bytes_that_never_become_a_character_are_replaced(byte_level: Tokenizer, plain: bool) -> None:
    decoder = Plain(byte_level) if plain else byte_level
    lead = byte_level.token_id("ð")
    letter = byte_level.token_id("a")
    assert lead is not None
    assert letter is not None
    assert "".join(pieces_of(decoder, [lead])) == "\ufffd"
    assert "".join(pieces_of(decoder, [lead, letter])) == "\ufffda"
    detokenizer = Detokenizer(decoder, prompt_tail=[], skip_special_tokens=True)
    assert "\ufffd" in "".join(detokenizer.add([lead]) for _ in range(20))


def test_byte_fallback_characters(sentencepiece: Tokenizer) -> None:
    token_ids = sentencepiece.encode("a 𝄞 b")
    pieces = pieces_of(sentencepiece, token_ids)
    assert "".join(pieces) == "a 𝄞 b"
    assert "𝄞" in pieces


def test_special_tokens_leave_text_only_on_request(byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("hi<|im_end|>") * 20
    assert "".join(pieces_of(byte_level, token_ids)) == "hi" * 20
    assert "".join(pieces_of(byte_level, token_ids, skip=False)) == "hi<|im_end|>" * 20
    assert "".join(pieces_of(Plain(byte_level), token_ids)) == "hi" * 20


def test_a_long_run_of_special_tokens_is_dropped(sentencepiece: Tokenizer) -> None:
    end = sentencepiece.eos_token_ids[0]
    token_ids = [*sentencepiece.encode("hello"), *[end] * 100, *sentencepiece.encode("world")]
    assert "".join(pieces_of(sentencepiece, token_ids)) == "hello world"


def test_ids_beyond_the_tokenizers_vocabulary_have_no_text(byte_level: Tokenizer) -> None:
    assert pieces_of(byte_level, [byte_level.vocab_size + 5]) == ["", ""]


def test_several_tokens_at_once(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    for decoder in (byte_level, sentencepiece):
        detokenizer = Detokenizer(decoder, prompt_tail=[], skip_special_tokens=True)
        assert detokenizer.add(decoder.encode("naïve café 東京")) + detokenizer.flush() == "naïve café 東京"
