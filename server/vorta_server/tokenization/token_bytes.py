"""What bytes each token stands for, and how few tokens a text can have: both read from tokenizer.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["byte_level_alphabet", "bytes_per_token_bound", "is_byte_level", "make_token_bytes"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# How many times shorter, in bytes of UTF-8, a normalizer may make a text at most. Composition: at most three bytes
# become one (Unicode's own bound on expansion, read backwards). Compatibility forms: at most four (a mathematical
# letter) times that.
_SHRINKAGE = {"NFC": 3, "NFD": 4, "NFKC": 12, "NFKD": 12, "Lowercase": 3, "Prepend": 1, "ByteLevel": 1}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"}


def byte_level_alphabet() -> dict[str, int]:
    """The byte of each character of byte-level vocabularies: GPT-2's map, which shows bytes without a printable Latin-1
    character as the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + position): byte for position, byte in enumerate(hidden)}


def is_byte_level(specification: Mapping[str, Any]) -> bool:
    """Whether tokens decode to the plain concatenation of their bytes."""
    return (specification.get("decoder") or {}).get("type") == "ByteLevel"


def make_token_bytes(specification: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[bytes]:
    """The bytes of each token id in the middle of a text, special tokens included (their own name).

    Args:
        specification: The parsed tokenizer.json.
        vocabulary: Every token with its id, added tokens included.
    """
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added = {entry["content"] for entry in specification.get("added_tokens") or ()}
    if is_byte_level(specification):
        alphabet = byte_level_alphabet()
        for token, token_id in vocabulary.items():
            try:
                table[token_id] = bytes([alphabet[character] for character in token])
            except KeyError:  # an added token that holds a character outside of the alphabet stands for itself
                table[token_id] = token.encode("utf-8", "replace")
        return table
    has_byte_tokens = bool((specification.get("model") or {}).get("byte_fallback"))
    for token, token_id in vocabulary.items():
        match = _BYTE_TOKEN.fullmatch(token) if has_byte_tokens else None
        if match:
            table[token_id] = bytes([int(match.group(1), 16)])
        elif token in added:
            table[token_id] = token.encode("utf-8", "replace")
        else:
            table[token_id] = token.replace("\u2581", " ").encode("utf-8", "replace")
    return table


def bytes_per_token_bound(specification: Mapping[str, Any], token_bytes: list[bytes]) -> float:
    """The most bytes of a text that one token can stand for; inf when the tokenizer may drop or fuse text.

    A text of n bytes has at least n divided by this many tokens.
    """
    model = specification.get("model") or {}
    shrinkage = _shrinkage(specification.get("normalizer"))
    if not math.isfinite(shrinkage) or not _keeps_all(specification.get("pre_tokenizer")):
        return math.inf
    if not (is_byte_level(specification) or model.get("byte_fallback")):
        return math.inf  # any run of unknown characters may become one unknown token
    if any(entry.get("lstrip") or entry.get("rstrip") for entry in specification.get("added_tokens") or ()):
        return math.inf  # such a token takes all the white space beside it
    if specification.get("truncation"):
        return math.inf
    return max((len(token) for token in token_bytes), default=1) * shrinkage


def _shrinkage(normalizer: Mapping[str, Any] | None) -> float:
    if normalizer is None:
        return 1
    kind = normalizer.get("type")
    if kind == "Sequence":
        return math.prod(_shrinkage(part) for part in normalizer.get("normalizers") or ())
    if kind == "Replace":
        pattern = (normalizer.get("pattern") or {}).get("String")
        content = normalizer.get("content")
        return 1 if pattern == " " and content == "\u2581" else math.inf
    return _SHRINKAGE.get(str(kind), math.inf)


def _keeps_all(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return all(_keeps_all(part) for part in pre_tokenizer.get("pretokenizers") or ())
    if kind == "Split":
        return pre_tokenizer.get("behavior") != "Removed"
    return kind in _KEEPING_PRE_TOKENIZERS
