"""The values that task generators produce: a message, a draft of a case, and the case itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

# Keys that start so are basic facts, such as the multiplication table, which nobody can derive: always in training.
TABLE = "table:"

Split = Literal["train", "heldout"]
Kind = Literal["chat", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat. `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a generator draws, before it is known to which split it belongs.

    `key` is the canonical form of the question: two drafts with one key are the same problem, however they
    are worded, and so fall in the same split. `follow_ups` are further (question, answer) turns on the
    same material, used in training only.
    """

    key: str
    question: str
    answer: str
    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    history: tuple[Message, ...] = ()
    follow_ups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question with the one answer that counts as right.

    A case of kind "chat" has messages (and maybe tools) for the chat template; one of kind "raw" has a
    prompt to be continued.
    """

    task: str
    kind: Kind
    answer: str
    key: str
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    follow_ups: tuple[tuple[str, str], ...] = ()


Generator = Callable[[Random], Draft]
