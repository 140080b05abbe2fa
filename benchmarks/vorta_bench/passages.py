"""Real English text in pieces of wanted lengths: the documentation of Python's standard library.

It is on every machine that runs this, and the same for the same version of Python.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

__all__ = ["collection", "mixed_lengths", "passages", "words"]


def words() -> list[str]:
    """The words of the standard library's docstrings, in order, with their punctuation."""
    found: list[str] = []
    for text in _docstrings():
        found += re.sub(r"[>=\-_*~^|]{3,}", " ", text).split()
    return found


def passages(lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Texts of about so many words each, from different places, distinct."""
    every = words()
    rng = Random(seed)
    texts: dict[str, None] = {}
    for length in lengths:
        while True:
            start = rng.randrange(len(every) - length)
            text = " ".join(every[start : start + length])
            if text not in texts:
                texts[text] = None
                break
    return list(texts)


def collection(lengths: Sequence[int]) -> list[str]:
    """Texts of so many words each, one behind the other without overlap, as a document is cut for a collection.

    Fewer than asked for when the words end.
    """
    every = words()
    texts, start = [], 0
    for length in lengths:
        if start + length > len(every):
            break
        texts.append(" ".join(every[start : start + length]))
        start += length
    return texts


def mixed_lengths(count: int, seed: int = 0, longest: int = 170) -> list[int]:
    """Lengths in words as a service sees them: mostly queries and sentences, some paragraphs, a few pages."""
    rng = Random(seed)
    bounds = ((3, 12), (12, 40), (40, 100), (100, longest))
    return [rng.randint(*bounds[rng.choices(range(4), (35, 35, 20, 10))[0]]) for _ in range(count)]


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*library.glob("*.py"), *library.glob("[a-z]*/*.py")]):
        if "test" in path.parent.name or "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text
