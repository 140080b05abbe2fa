"""The keywords that say how to generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

__all__ = ["Sampling"]


class Sampling(TypedDict, total=False):
    """Keywords of generate, chat and their streams; absent (or None) means the server's default, never zero.

    The names, ranges and defaults are those of `vorta.v1.GenerateRequest`.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop: bool | None
    ignore_eos: bool | None
    n: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool | None
    priority: int | None
    deterministic: bool | None
    skip_special_tokens: bool | None
    request_id: str | None
    json_object: bool | None
    """The text must be a JSON object. Of this and the four that follow, one at most."""
    json_schema: str | Mapping[str, Any] | type | None
    """The text must be JSON of this schema: JSON text, a mapping, or a class of pydantic's."""
    regex: str | None
    """The whole text must match it."""
    choice: Sequence[str] | None
    """The text must be one of these."""
    grammar: str | None
    """The text must be of this grammar: Lark with a rule `start`, or GBNF with a rule `root`."""
