"""Request messages as engine values: every field checked and named, absent ones resolved to their defaults.

The four request types carry the same sampling fields under the same names, so one function reads them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from google.protobuf.struct_pb2 import Struct, Value

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta.v1 import common_pb2, inference_pb2
from vorta_server.engine.request import SamplingParams
from vorta_server.front.call import is_request_id
from vorta_server.workers.protocol import ChatMessage, ModelCard, Prompt, ToolCall, ToolSpec

__all__ = [
    "ChatRequest",
    "GenerateRequest",
    "GenerationMessage",
    "chat_prompt",
    "checked_request_id",
    "checked_token_ids",
    "plain_struct",
    "priority",
    "resume_window_s",
    "sampling_params",
    "text_prompt",
    "tokenize_prompt",
]

GenerateRequest = inference_pb2.GenerateRequest | inference_pb2.StreamGenerateRequest
ChatRequest = inference_pb2.ChatRequest | inference_pb2.StreamChatRequest
GenerationMessage = GenerateRequest | ChatRequest

MAX_STOPS = 16
MAX_STOP_BYTES = 1024
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIASES = 1024
MAX_SEQUENCES = 64
MAX_LOGPROBS = 20
MAX_TOOLS = 128
MAX_RESUME_WINDOW_S = 300.0

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def sampling_params(request: GenerationMessage, card: ModelCard, *, max_tokens_cap: int | None) -> SamplingParams:
    """The request's sampling fields. Raises InvalidArgument naming the first bad one."""
    defaults = card.defaults
    max_tokens: int | None = _integer(request, "max_tokens", 1, None, None)
    if max_tokens is not None and max_tokens_cap is not None and max_tokens > max_tokens_cap:
        _refuse("max_tokens", f"must be at most {max_tokens_cap} on this server", max_tokens)
    min_tokens: int = _integer(request, "min_tokens", 0, None, 0)
    if max_tokens is not None and min_tokens > max_tokens:
        _refuse("min_tokens", f"must be at most max_tokens, which is {max_tokens}", min_tokens)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_number(request, "temperature", 0.0, 100.0, defaults.temperature),
        top_p=_number(request, "top_p", 0.0, 1.0, defaults.top_p, above=True),
        top_k=_integer(request, "top_k", 0, None, defaults.top_k),
        min_p=_number(request, "min_p", 0.0, 1.0, 0.0),
        presence_penalty=_number(request, "presence_penalty", -2.0, 2.0, 0.0),
        frequency_penalty=_number(request, "frequency_penalty", -2.0, 2.0, 0.0),
        repetition_penalty=_number(request, "repetition_penalty", 0.0, 10.0, defaults.repetition_penalty, above=True),
        logit_bias=_logit_bias(request, card.vocab_size),
        seed=request.seed if request.HasField("seed") else None,
        stop=_stops(request.stop),
        stop_token_ids=_stop_token_ids(request, card.vocab_size),
        include_stop=request.include_stop,
        ignore_eos=request.ignore_eos,
        n=_integer(request, "n", 1, MAX_SEQUENCES, 1),
        logprobs=_integer(request, "logprobs", 0, MAX_LOGPROBS, None),
        prompt_logprobs=_integer(request, "prompt_logprobs", 0, MAX_LOGPROBS, None),
        echo=request.echo,
        deterministic=request.deterministic,
        skip_special_tokens=request.skip_special_tokens if request.HasField("skip_special_tokens") else True,
    )


def priority(request: GenerationMessage) -> int:
    """The request's priority. Raises InvalidArgument out of -1000 to 1000."""
    value: int = _integer(request, "priority", -1000, 1000, 0)
    return value


def text_prompt(request: GenerateRequest, card: ModelCard) -> Prompt:
    """The prompt of a Generate request: exactly one of text and token ids, not empty.

    Raises InvalidArgument: CONFLICTING_FIELDS, MISSING_FIELD or INVALID_FIELD; CONTEXT_LENGTH_EXCEEDED when token
    ids and max_tokens are longer than the context (for text the worker finds out).
    """
    has_text = request.HasField("prompt")
    if has_text and request.prompt_token_ids:
        raise InvalidArgument(
            "prompt and prompt_token_ids exclude each other",
            reason="CONFLICTING_FIELDS",
            field="prompt_token_ids",
        )
    if request.prompt_token_ids:
        token_ids = checked_token_ids("prompt_token_ids", request.prompt_token_ids, card.vocab_size)
        max_tokens = request.max_tokens if request.HasField("max_tokens") else 1
        if len(token_ids) + max_tokens > card.max_model_len:
            field = "prompt_token_ids" if len(token_ids) >= card.max_model_len else "max_tokens"
            raise InvalidArgument(
                f"{len(token_ids)} prompt tokens and max_tokens {max_tokens} exceed the model's context of "
                f"{card.max_model_len} tokens",
                reason="CONTEXT_LENGTH_EXCEEDED",
                field=field,
                metadata={"prompt_tokens": len(token_ids), "max_model_len": card.max_model_len},
            )
        return Prompt(token_ids=token_ids)
    if not request.prompt:
        raise InvalidArgument(
            "prompt must not be empty" if has_text else "one of prompt and prompt_token_ids is required",
            reason="MISSING_FIELD",
            field="prompt",
        )
    return Prompt(text=request.prompt)


def chat_prompt(request: ChatRequest, card: ModelCard) -> Prompt:
    """The prompt of a Chat request. Raises InvalidArgument naming the bad field, or FailedPrecondition."""
    continues = request.continue_final_message
    if continues and request.add_generation_prompt:
        raise InvalidArgument(
            "continue_final_message and add_generation_prompt exclude each other",
            reason="CONFLICTING_FIELDS",
            field="continue_final_message",
        )
    opens = request.add_generation_prompt if request.HasField("add_generation_prompt") else not continues
    return Prompt(
        messages=_messages(request.messages, card),
        tools=_tools(request.tools) if request.tool_choice.mode != common_pb2.TOOL_CHOICE_MODE_NONE else [],
        add_generation_prompt=opens,
        continue_final_message=continues,
    )


def tokenize_prompt(request: inference_pb2.TokenizeRequest, card: ModelCard) -> Prompt:
    """What a Tokenize request asks about: exactly one of text (which may be empty) and messages."""
    has_text = request.HasField("text")
    if has_text and request.messages:
        raise InvalidArgument("text and messages exclude each other", reason="CONFLICTING_FIELDS", field="messages")
    if request.messages:
        opens = request.add_generation_prompt if request.HasField("add_generation_prompt") else True
        return Prompt(
            messages=_messages(request.messages, card),
            tools=_tools(request.tools),
            add_generation_prompt=opens,
        )
    if not has_text:
        raise InvalidArgument("one of text and messages is required", reason="MISSING_FIELD", field="text")
    adds = request.add_special_tokens if request.HasField("add_special_tokens") else True
    return Prompt(text=request.text, add_special_tokens=adds)


def checked_token_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """The token ids as a list. Raises InvalidArgument when one is not of the vocabulary."""
    values = list(token_ids)
    if values and (min(values) < 0 or max(values) >= vocab_size):
        position = next(i for i, value in enumerate(values) if not 0 <= value < vocab_size)
        _refuse(f"{field}[{position}]", f"must be a token id of 0 to {vocab_size - 1}", values[position])
    return values


def checked_request_id(request_id: str, *, required: bool) -> str:
    """A request's own id, empty when absent. Raises InvalidArgument when it is malformed or missing."""
    if not request_id:
        if required:
            raise InvalidArgument("request_id is required", reason="MISSING_FIELD", field="request_id")
        return ""
    if not is_request_id(request_id):
        raise InvalidArgument("request_id must be 1 to 128 visible ASCII characters", field="request_id")
    return request_id


def resume_window_s(request: inference_pb2.StreamGenerateRequest | inference_pb2.StreamChatRequest) -> float:
    """Seconds for which the request outlives its connection. Raises InvalidArgument out of 0 to 300."""
    return _number(request, "resume_window_s", 0.0, MAX_RESUME_WINDOW_S, 0.0)


def _messages(messages: Iterable[common_pb2.ChatMessage], card: ModelCard) -> list[ChatMessage]:
    converted: list[ChatMessage] = []
    for position, message in enumerate(messages):
        field = f"messages[{position}]"
        if not message.role:
            raise InvalidArgument(f"{field}.role is required", reason="MISSING_FIELD", field=f"{field}.role")
        if message.role not in _ROLES:
            _refuse(f"{field}.role", "must be system, user, assistant or tool", message.role[:64])
        if message.tool_calls and message.role != "assistant":
            _refuse(f"{field}.tool_calls", "belong to assistant messages only", message.role)
        if not message.content and not message.tool_calls:
            raise InvalidArgument(
                f"{field}.content must not be empty", reason="MISSING_FIELD", field=f"{field}.content"
            )
        calls = [ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls]
        converted.append(ChatMessage(message.role, message.content, calls, message.tool_call_id, message.name))
    if not converted:
        raise InvalidArgument("messages must not be empty", reason="MISSING_FIELD", field="messages")
    if not card.has_chat_template:
        raise FailedPrecondition(
            f"model {card.model} has no chat template",
            reason="MODEL_KIND_MISMATCH",
            metadata={"model": card.model, "kind": card.kind},
        )
    return converted


def _tools(tools: Sequence[common_pb2.Tool]) -> list[ToolSpec]:
    if len(tools) > MAX_TOOLS:
        _refuse("tools", f"must have at most {MAX_TOOLS} entries", len(tools))
    converted: list[ToolSpec] = []
    for position, tool in enumerate(tools):
        if not _TOOL_NAME.fullmatch(tool.name):
            _refuse(f"tools[{position}].name", "must be 1 to 64 letters, digits, '_' or '-'", tool.name[:64])
        parameters = plain_struct(tool.parameters) if tool.HasField("parameters") else {}
        converted.append(ToolSpec(tool.name, tool.description, parameters))
    return converted


def plain_struct(struct: Struct) -> dict[str, Any]:
    """The object as JSON would have it; whole numbers as integers, as they were written most likely."""
    return {key: _plain_value(value) for key, value in struct.fields.items()}


def _plain_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain_struct(value.struct_value)
        case "list_value":
            return [_plain_value(item) for item in value.list_value.values]
    return None


def _logit_bias(request: GenerationMessage, vocab_size: int) -> dict[int, float]:
    if not request.logit_bias:
        return {}
    if len(request.logit_bias) > MAX_LOGIT_BIASES:
        _refuse("logit_bias", f"must have at most {MAX_LOGIT_BIASES} entries", len(request.logit_bias))
    bias = dict(request.logit_bias)
    for token_id, value in bias.items():
        if not 0 <= token_id < vocab_size:
            _refuse("logit_bias", f"keys must be token ids of 0 to {vocab_size - 1}", token_id)
        if not -100.0 <= value <= 100.0:
            _refuse("logit_bias", "values must be -100 to 100", value)
    return bias


def _stops(stops: Sequence[str]) -> tuple[str, ...]:
    if not stops:
        return ()
    if len(stops) > MAX_STOPS:
        _refuse("stop", f"must have at most {MAX_STOPS} entries", len(stops))
    for position, stop in enumerate(stops):
        num_bytes = len(stop.encode())
        if not 1 <= num_bytes <= MAX_STOP_BYTES:
            _refuse(f"stop[{position}]", f"must be 1 to {MAX_STOP_BYTES} bytes", f"{num_bytes} bytes")
    return tuple(stops)


def _stop_token_ids(request: GenerationMessage, vocab_size: int) -> tuple[int, ...]:
    if len(request.stop_token_ids) > MAX_STOP_TOKENS:
        _refuse("stop_token_ids", f"must have at most {MAX_STOP_TOKENS} entries", len(request.stop_token_ids))
    return tuple(checked_token_ids("stop_token_ids", request.stop_token_ids, vocab_size))


def _number(request: Any, field: str, low: float, high: float, default: float, *, above: bool = False) -> float:
    if not request.HasField(field):
        return default
    value: float = getattr(request, field)
    # Written so that NaN fails.
    if not (low <= value <= high) or (above and value == low):
        _refuse(field, f"must be {'above ' if above else ''}{low:g} to {high:g}", value)
    return value


def _integer(request: Any, field: str, low: int, high: int | None, default: Any) -> Any:
    if not request.HasField(field):
        return default
    value: int = getattr(request, field)
    if value < low or (high is not None and value > high):
        _refuse(field, f"must be {low} to {high}" if high is not None else f"must be at least {low}", value)
    return value


def _refuse(field: str, rule: str, value: object) -> NoReturn:
    raise InvalidArgument(f"{field} {rule}, got {value}", reason="INVALID_FIELD", field=field)
