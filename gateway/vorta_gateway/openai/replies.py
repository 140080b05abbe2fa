"""Parts of OpenAI's replies."""

from __future__ import annotations

import time
from typing import Any

from vorta.v1 import common_pb2

__all__ = ["chat_logprobs", "completion_logprobs", "created_now", "finish_reason", "tool_calls_json", "usage_json"]

_REASONS: dict[int, str] = {common_pb2.FINISH_REASON_STOP: "stop", common_pb2.FINISH_REASON_LENGTH: "length"}


def created_now() -> int:
    """Unix seconds."""
    return int(time.time())


def finish_reason(reason: int, *, has_tool_calls: bool = False) -> str | None:
    """OpenAI's word; None for a sequence that has not ended well."""
    word = _REASONS.get(reason)
    return "tool_calls" if has_tool_calls and word == "stop" else word


def usage_json(usage: common_pb2.Usage) -> dict[str, Any]:
    """Token counts."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
    }


def chat_logprobs(entries: Any) -> dict[str, Any] | None:
    """Log probabilities as chat completions have them; None where there are none."""
    if not entries:
        return None
    return {
        "content": [{**_token(entry), "top_logprobs": [_token(other) for other in entry.top]} for entry in entries],
        "refusal": None,
    }


def _token(entry: Any) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.token.encode())}


def completion_logprobs(entries: Any, text_offset: int) -> dict[str, Any] | None:
    """Log probabilities as completions have them; None where there are none."""
    if not entries:
        return None
    offsets: list[int] = []
    for entry in entries:
        offsets.append(text_offset)
        text_offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob if entry.HasField("logprob") else None for entry in entries],
        "top_logprobs": [{other.token: other.logprob for other in entry.top} for entry in entries],
        "text_offset": offsets,
    }


def tool_calls_json(calls: Any) -> list[dict[str, Any]]:
    """Tool calls of an assistant's message."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
