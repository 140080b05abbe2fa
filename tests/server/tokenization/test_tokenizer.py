"""Loading, encoding, decoding and the limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.tokenization.tokenizer import GenerationDefaults, Tokenizer


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60), add_special=st.booleans())
def test_round_trip(byte_level: Tokenizer, sentencepiece: Tokenizer, text: str, add_special: bool) -> None:
    for tokenizer in (byte_level, sentencepiece):
        token_ids = tokenizer.encode(text, add_special)
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)
    assert byte_level.decode(byte_level.encode(text), False) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text("aé東🙂 \n<>▁", max_size=60))
def test_token_bytes_join_to_the_text(byte_level: Tokenizer, sentencepiece: Tokenizer, text: str) -> None:
    joined = b"".join(byte_level.token_bytes(i) for i in byte_level.encode(text, False))
    assert joined.decode() == text
    joined = b"".join(sentencepiece.token_bytes(i) for i in sentencepiece.encode(text, False))
    assert joined.decode() == (" " + text).replace("▁", " ") if text else not joined


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200), limit=st.integers(1, 60))
def test_the_cheap_length_check_never_refuses_what_fits(
    byte_level: Tokenizer, sentencepiece: Tokenizer, text: str, limit: int
) -> None:
    for tokenizer in (byte_level, sentencepiece):
        num_tokens = len(tokenizer.encode(text))
        if num_tokens <= limit:
            tokenizer.check_length(text, limit)
            assert len(tokenizer.encode(text, max_tokens=limit)) == num_tokens
        else:
            with pytest.raises(InvalidArgument) as caught:
                tokenizer.encode(text, max_tokens=limit)
            assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
            assert caught.value.field == "prompt"


def test_a_huge_text_is_refused_without_tokenizing(byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_level, "_tokenizer", None)
    with pytest.raises(InvalidArgument, match="at least"):
        byte_level.encode("words and more words " * 500_000, max_tokens=4096)


def test_ids_and_special_tokens(byte_level: Tokenizer) -> None:
    assert byte_level.bos_token_id == 0
    assert byte_level.eos_token_ids == (2,)
    assert byte_level.special_token_ids == {0, 1, 2}
    assert byte_level.encode("<|im_start|>a") == [1, *byte_level.encode("a")]
    assert byte_level.token_id("<|im_end|>") == 2
    assert byte_level.token_id("nothing") is None
    assert byte_level.token_text(2) == "<|im_end|>"
    assert byte_level.token_text(byte_level.token_id("ð") or 0) == "\ufffd"
    assert byte_level.token_bytes(10**6) == b""


def test_token_text_of_sentencepiece(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.token_bytes(sentencepiece.token_id("<0x41>") or 0) == b"A"
    assert sentencepiece.token_text(sentencepiece.token_id("▁") or 0) == " "
    assert sentencepiece.byte_table(True) is None


def test_a_lone_surrogate_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidArgument) as caught:
        byte_level.encode("a\ud800")
    assert caught.value.field == "prompt"


def test_generation_config(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(byte_level_folder, tmp_path / "model"))
    assert Tokenizer(folder).generation_defaults == GenerationDefaults()
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert Tokenizer(folder).eos_token_ids == (1,)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 0], "temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1})
    )
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_token_ids == (2, 0)
    expected = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=40, repetition_penalty=1.1)
    assert tokenizer.generation_defaults == expected
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": None}))
    assert Tokenizer(folder).generation_defaults.temperature == 0.0


def test_truncation_of_the_checkpoint_is_switched_off(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(byte_level_folder, tmp_path / "model"))
    specification = json.loads((folder / "tokenizer.json").read_text())
    specification["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(specification))
    assert len(Tokenizer(folder).encode("a b c d e f g h")) > 2


def test_broken_files_are_named(byte_level_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    folder = Path(shutil.copytree(byte_level_folder, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"tokenizer_config\.json") as caught:
        Tokenizer(folder)
    assert caught.value.reason == "CHECKPOINT_INVALID"
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(FailedPrecondition, match="not a JSON object"):
        Tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"tokenizer\.json"):
        Tokenizer(folder)


def test_template_files_take_the_place_of_the_configs(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(byte_level_folder, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text("{}")
    assert not Tokenizer(folder).has_chat_template
    with pytest.raises(FailedPrecondition, match="no chat template"):
        Tokenizer(folder).render_chat([])
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    tokenizer = Tokenizer(folder)
    assert tokenizer._chat_template is not None
    assert tokenizer._chat_template.render([{"role": "user", "content": "x"}]) == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    tokenizer = Tokenizer(folder)
    assert tokenizer._chat_template is not None
    assert tokenizer._chat_template.render([{"role": "user", "content": "x"}]) == "jinja"
