"""Texts and pairs for encoders: special tokens, cuts at either end, counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from vorta.errors import FailedPrecondition
from vorta_server.tokenization.encoder_tokenizer import EncoderTokenizer

CLS, SEP = 0, 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of one token a letter with BERT's frame, and truncation and padding left over from training."""
    vocabulary = {"[CLS]": CLS, "[SEP]": SEP, **{chr(97 + index): 2 + index for index in range(26)}, " ": 28}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def letters(text: str) -> list[int]:
    return [28 if letter == " " else 2 + ord(letter) - 97 for letter in text]


def test_texts_get_their_frame_and_no_leftover_of_training(folder: Path) -> None:
    tokenizer = EncoderTokenizer(folder, max_tokens=16)
    one, two = tokenizer.encode(["abc", "a" * 14])
    assert one.token_ids.tolist() == [CLS, *letters("abc"), SEP]
    assert (one.num_tokens, one.num_cut, one.token_types) == (5, 0, None)
    assert len(two.token_ids) == 16
    assert tokenizer.encode(["abc"])[0].token_ids.tolist() == one.token_ids.tolist()  # alone as in company


def test_long_texts_are_cut_at_the_side_that_is_asked_for(folder: Path) -> None:
    tokenizer = EncoderTokenizer(folder, max_tokens=6)
    text = "abcdefghij"
    (right,) = tokenizer.encode([text], truncate="right")
    (left,) = tokenizer.encode([text], truncate="left")
    assert right.token_ids.tolist() == [CLS, *letters("abcd"), SEP]
    assert left.token_ids.tolist() == [CLS, *letters("ghij"), SEP]
    assert right.num_cut == left.num_cut == 6
    assert right.num_tokens == 12
    (whole,) = tokenizer.encode([text])
    assert (len(whole.token_ids), whole.num_tokens, whole.num_cut) == (12, 12, 0)  # too long, and told so
    (shorter,) = tokenizer.encode([text], truncate="right", max_tokens=2)
    assert shorter.token_ids.tolist() == [CLS, *letters("ab"), SEP]


def test_pairs_have_types_and_documents_are_cut(folder: Path) -> None:
    tokenizer = EncoderTokenizer(folder, max_tokens=12)
    short, long = tokenizer.encode_pairs("abc", ["de", "e" * 20])
    assert short.token_ids.tolist() == [CLS, *letters("abc"), SEP, *letters("de"), SEP]
    assert short.token_types is not None
    assert short.token_types.tolist() == [0] * 5 + [1] * 3
    assert len(long.token_ids) == 12
    assert long.num_cut == 20 - 6
    (limited,) = tokenizer.encode_pairs("abc", ["e" * 20], max_tokens_per_doc=2)
    assert limited.token_ids.tolist() == [CLS, *letters("abc"), SEP, *letters("ee"), SEP]
    (query_cut,) = tokenizer.encode_pairs("q" * 30, ["de"])
    assert len(query_cut.token_ids) <= 12
    assert query_cut.token_ids.tolist()[-3:] == [*letters("de"), SEP]


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"tokenizer\.json"):
        EncoderTokenizer(tmp_path, max_tokens=8)
