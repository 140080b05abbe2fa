"""OpenAI's request fields as those of the contract.

Fields of OpenAI and vLLM that the contract has are carried over; some that change nothing here are taken and passed
over; any other is refused by name, as OpenAI does.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from vorta.errors import InvalidArgument
from vorta_gateway.http import HttpRequest
from vorta_gateway.json.codec import Codec, loads
from vorta_gateway.json.errors import JsonError, shown
from vorta_gateway.status import StatusError

__all__ = ["fill", "message_json", "read_body", "refuse", "refuse_unknown", "sampling", "tools_json"]

_CODEC = Codec()

# By the name of OpenAI or vLLM, the contract's.
_SAMPLING = {
    "model": "model",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "seed": "seed",
    "n": "n",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "include_stop_str_in_output": "include_stop",
    "ignore_eos": "ignore_eos",
    "priority": "priority",
    "skip_special_tokens": "skip_special_tokens",
    "deterministic": "deterministic",
}

# Taken, and without effect: who asks, how it is billed and stored, and what is the case anyway.
_PASSED_OVER = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)


async def read_body(request: HttpRequest, max_bytes: int) -> dict[str, Any]:
    """The request's JSON object. Raises StatusError."""
    try:
        value = loads(await request.body(max_bytes))
    except JsonError as error:
        raise StatusError.of(InvalidArgument(f"the body is {error.why}")) from None
    if not isinstance(value, dict):
        raise StatusError.of(InvalidArgument("the body is not a JSON object"))
    return {name: item for name, item in value.items() if item is not None}


def refuse(field: str, why: str) -> StatusError:
    """A field that cannot be served."""
    return StatusError.of(InvalidArgument(f"{field}: {why}", field=field))


def refuse_unknown(body: dict[str, Any], known: frozenset[str]) -> None:
    """Raises StatusError for a field that nobody reads."""
    for name in body:
        if name not in known and name not in _SAMPLING and name not in _PASSED_OVER:
            raise refuse(name[:80], "there is no such parameter")


def sampling(body: dict[str, Any]) -> dict[str, Any]:
    """The contract's sampling fields, as JSON."""
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise refuse("max_tokens", "max_completion_tokens is given too, and only one of them can be")
    fields = {ours: body[theirs] for theirs, ours in _SAMPLING.items() if theirs in body}
    if "stop" in body:
        stop = body["stop"]
        fields["stop"] = [stop] if isinstance(stop, str) else stop
    return fields


def fill(message: Message, fields: dict[str, Any]) -> None:
    """Sets a message's fields. Raises StatusError, which names the field."""
    try:
        _CODEC.fill(message, fields)
    except JsonError as error:
        raise StatusError.of(error.invalid_argument()) from None


def message_json(message: Any, position: int) -> dict[str, Any]:
    """A chat message of OpenAI's as one of the contract's."""
    where = f"messages[{position}]"
    if not isinstance(message, dict):
        raise refuse(where, f"{shown(message)} is not an object")
    made: dict[str, Any] = {}
    for name, value in message.items():
        if value is None or name in ("refusal", "audio", "annotations"):
            continue
        if name == "role":
            made["role"] = "system" if value == "developer" else value
        elif name == "content":
            made["content"] = _content(value, where)
        elif name == "tool_calls":
            made["tool_calls"] = [
                _tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(_listed(value, where))
            ]
        elif name in ("tool_call_id", "name"):
            made[name] = value
        else:
            raise refuse(f"{where}.{name[:80]}", "there is no such parameter")
    return made


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise refuse(where, f"{shown(value)} is not an array")
    return value


def _content(value: Any, where: str) -> Any:
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise refuse(f"{where}.content[{index}]", "only parts of type text, with a text, are served")
        texts.append(part["text"])
    return "".join(texts)


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise refuse(where, "not a call of a function")
    return {"id": call.get("id", ""), "name": function.get("name", ""), "arguments": function.get("arguments", "")}


def tools_json(tools: Any) -> list[dict[str, Any]]:
    """OpenAI's tools as those of the contract."""
    made: list[dict[str, Any]] = []
    for index, tool in enumerate(_listed(tools, "tools")):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise refuse(f"tools[{index}]", "only tools of type function are served")
        made.append({name: function[name] for name in ("name", "description", "parameters") if function.get(name)})
    return made
