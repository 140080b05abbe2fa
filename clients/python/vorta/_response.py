"""From the contract's messages to the values that clients return; shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from vorta.errors import DeadlineExceeded, Unavailable, VortaError
from vorta.result import (
    ChatMessage,
    Delta,
    Event,
    Finished,
    FinishReason,
    Generation,
    HealthStatus,
    Model,
    ModelKind,
    ModelLoad,
    ModelState,
    RequestError,
    SequenceOutput,
    ServerInfo,
    Started,
    StopMatch,
    Timings,
    TokenAlternative,
    Tokenization,
    TokenLogprob,
    ToolCall,
    Usage,
)
from vorta.v1 import admin_pb2, common_pb2, inference_pb2
from vorta.wire import error_from_reason

_FINISH = {0: FinishReason.UNSPECIFIED} | {
    number: FinishReason(name.removeprefix("FINISH_REASON_").lower())
    for name, number in common_pb2.FinishReason.items()
}
_STATES = {
    number: ModelState(name.removeprefix("MODEL_STATE_").lower()) for name, number in admin_pb2.ModelState.items()
}
_KINDS = {number: ModelKind(name.removeprefix("MODEL_KIND_").lower()) for name, number in admin_pb2.ModelKind.items()}
_HEALTH = (HealthStatus.UNKNOWN, HealthStatus.SERVING, HealthStatus.NOT_SERVING, HealthStatus.SERVICE_UNKNOWN)


def generation(response: Any) -> Generation:
    """Of a GenerateResponse or a ChatResponse."""
    is_chat = isinstance(response, inference_pb2.ChatResponse)
    return Generation(
        request_id=response.request_id,
        model=response.model,
        text=response.text,
        token_ids=tuple(response.token_ids),
        finish_reason=finish_reason(response.finish_reason),
        usage=usage(response.usage),
        timings=_timings(response.timings),
        tokens_per_second=response.tokens_per_second,
        stop_match=_stop_match(response),
        logprobs=_logprobs(response.logprobs),
        prompt_logprobs=_logprobs(response.prompt_logprobs),
        sequences=tuple(_sequence(sequence) for sequence in response.sequences),
        message=_chat_message(response.message) if is_chat and response.HasField("message") else None,
    )


def event(response: Any) -> Event | None:
    """Of a message of any of the three streams; None for an event of a kind that only newer clients know."""
    kind = response.WhichOneof("event")
    if kind == "delta":
        return delta(response.index, response.delta)
    if kind == "started":
        return started(response.index, response.started)
    if kind == "finished":
        return finished(response.index, response.finished)
    return None


def started(index: int, message: common_pb2.StreamStarted) -> Started:
    """Of a StreamStarted."""
    return Started(index=index, request_id=message.request_id, model=message.model, prompt_tokens=message.prompt_tokens)


def delta(index: int, message: common_pb2.StreamDelta) -> Delta:
    """Of a StreamDelta."""
    return Delta(
        index=index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        sequence_index=message.sequence_index,
        logprobs=_logprobs(message.logprobs) if message.logprobs else (),
        finish_reason=finish_reason(message.finish_reason),
    )


def finished(index: int, message: common_pb2.StreamFinished) -> Finished:
    """Of a StreamFinished."""
    error = None
    if message.HasField("error"):
        error = RequestError(
            reason=message.error.reason, message=message.error.message, retryable=message.error.retryable
        )
    return Finished(
        index=index,
        finish_reason=finish_reason(message.finish_reason),
        usage=usage(message.usage),
        timings=_timings(message.timings),
        stop_match=_stop_match(message),
        prompt_logprobs=_logprobs(message.prompt_logprobs),
        sequences=tuple(_sequence(sequence) for sequence in message.sequences),
        error=error,
        message=_chat_message(message.message) if message.HasField("message") else None,
    )


def error_of(end: Finished) -> VortaError | None:
    """The error that a stream's end stands for; None when it ran to its end or was cancelled."""
    if end.finish_reason is FinishReason.DEADLINE:
        return DeadlineExceeded("the request's deadline passed")
    if end.finish_reason is FinishReason.DRAINING:
        return Unavailable("the server shut down before the request could finish", reason="DRAINING", retry_delay_s=1.0)
    if end.finish_reason is FinishReason.ERROR:
        error = end.error or RequestError(reason="INTERNAL", message="the request failed", retryable=False)
        return error_from_reason(error.reason, error.message, retryable=error.retryable)
    return None


def tokenization(response: inference_pb2.TokenizeResponse) -> Tokenization:
    """Of a TokenizeResponse."""
    return Tokenization(
        token_ids=tuple(response.token_ids),
        tokens=tuple(response.tokens),
        count=response.count,
        max_model_len=response.max_model_len,
    )


def model(message: admin_pb2.Model) -> Model:
    """Of a Model."""
    load = None
    if message.HasField("load"):
        load = ModelLoad(
            running_requests=message.load.running_requests,
            waiting_requests=message.load.waiting_requests,
            kv_use=message.load.kv_use,
            restart_count=message.load.restart_count,
            worker_pid=message.load.worker_pid,
        )
    return Model(
        model=message.model,
        kind=_KINDS.get(message.kind, ModelKind.UNSPECIFIED),
        state=_STATES.get(message.state, ModelState.UNSPECIFIED),
        source=message.source,
        architecture=message.architecture,
        precision=message.precision,
        device=message.device,
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        parameter_count=message.parameter_count,
        is_default=message.is_default,
        error=message.error,
        load_time=_time(message.load_time) if message.HasField("load_time") else None,
        load=load,
        dimension=message.dimension,
        prompt_names=tuple(message.prompt_names),
    )


def server_info(response: admin_pb2.GetServerInfoResponse) -> ServerInfo:
    """Of a GetServerInfoResponse."""
    return ServerInfo(
        version=response.version,
        start_time=_time(response.start_time) if response.HasField("start_time") else None,
        default_model=response.default_model,
        max_message_bytes=response.max_message_bytes,
        is_draining=response.is_draining,
        services=tuple(response.services),
        default_embedding_model=response.default_embedding_model,
        default_rerank_model=response.default_rerank_model,
    )


def health(response: Any) -> HealthStatus:
    """Of a HealthCheckResponse."""
    return _HEALTH[response.status] if 0 <= response.status < len(_HEALTH) else HealthStatus.UNKNOWN


def finish_reason(number: int) -> FinishReason:
    """Of a FinishReason's number; UNSPECIFIED for one of a newer contract."""
    return _FINISH.get(number, FinishReason.UNSPECIFIED)


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def usage(message: common_pb2.Usage) -> Usage:
    """Of a Usage."""
    return Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        total_tokens=message.total_tokens,
        cached_prompt_tokens=message.cached_prompt_tokens,
    )


def _timings(message: common_pb2.Timings) -> Timings:
    return Timings(
        queue_s=message.queue_s,
        prefill_s=message.prefill_s,
        decode_s=message.decode_s,
        ttft_s=message.ttft_s,
        total_s=message.total_s,
        tokens_per_second=message.tokens_per_second,
    )


def _stop_match(message: Any) -> StopMatch | None:
    if not message.HasField("stop_match"):
        return None
    match message.stop_match.WhichOneof("match"):
        case "stop":
            return StopMatch(stop=message.stop_match.stop)
        case "token_id":
            return StopMatch(token_id=message.stop_match.token_id)
    return None


def _sequence(message: common_pb2.SequenceOutput) -> SequenceOutput:
    return SequenceOutput(
        sequence_index=message.sequence_index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=finish_reason(message.finish_reason),
        stop_match=_stop_match(message),
        logprobs=_logprobs(message.logprobs),
    )


def _logprobs(messages: Iterable[common_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token_id=message.token_id,
            token=message.token,
            logprob=message.logprob if message.HasField("logprob") else None,
            top=tuple(
                TokenAlternative(token_id=entry.token_id, token=entry.token, logprob=entry.logprob)
                for entry in message.top
            ),
        )
        for message in messages
    )


def _chat_message(message: common_pb2.ChatMessage) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=tuple(ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )
