"""Tool calls in the text of an assistant: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

import re

import msgspec
from vorta.v1 import common_pb2

__all__ = ["assistant_message"]

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


_decoder = msgspec.json.Decoder(_Call)


def assistant_message(text: str, *, id_prefix: str) -> common_pb2.ChatMessage:
    """The text as an assistant's message, its well-formed tool calls taken out of the content.

    A call that is no JSON object with a name stays in the content, as the model wrote it. Ids are the prefix and
    the call's position, so the same text gives the same ids.
    """
    message = common_pb2.ChatMessage(role="assistant")

    def take(match: re.Match[str]) -> str:
        try:
            call = _decoder.decode(match[1].encode())
        except msgspec.DecodeError:
            return match[0]
        message.tool_calls.add(
            id=f"{id_prefix}-{len(message.tool_calls)}",
            name=call.name,
            arguments=bytes(call.arguments).decode(),
        )
        return ""

    content = _CALL.sub(take, text) if "<tool_call>" in text else text
    message.content = content.strip() if message.tool_calls else content
    return message
