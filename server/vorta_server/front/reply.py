"""Engine events as reply messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from vorta.v1 import common_pb2, inference_pb2
from vorta_server.engine.request import (
    Delta,
    Event,
    Finished,
    FinishReason,
    SequenceEnd,
    Started,
    TokenLogprob,
)
from vorta_server.tokenization.tool_call import parse_tool_calls

__all__ = ["StreamMessage", "UnaryOutput", "assistant_message", "fill_unary", "stream_message"]

StreamMessage = TypeVar(
    "StreamMessage",
    inference_pb2.StreamGenerateResponse,
    inference_pb2.StreamChatResponse,
    inference_pb2.ResumeGenerateResponse,
)
UnaryMessage = inference_pb2.GenerateResponse | inference_pb2.ChatResponse


class UnaryOutput:
    """Collects the events of a request whose caller waits for the whole."""

    __slots__ = ("logprobs", "texts", "token_ids")

    def __init__(self, num_sequences: int) -> None:
        self.texts: list[list[str]] = [[] for _ in range(num_sequences)]
        self.token_ids: list[list[int]] = [[] for _ in range(num_sequences)]
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in range(num_sequences)]

    def add(self, delta: Delta) -> None:
        """Takes new tokens."""
        index = delta.sequence_index
        self.texts[index].append(delta.text)
        self.token_ids[index].extend(delta.token_ids)
        if delta.logprobs:
            self.logprobs[index].extend(delta.logprobs)


def stream_message(
    message_type: type[StreamMessage],
    index: int,
    event: Event,
    *,
    request_id: str,
    model: str,
    chat_message: common_pb2.ChatMessage | None = None,
) -> StreamMessage:
    """One event of a stream. `chat_message` goes into its end."""
    if type(event) is Delta:
        # Filled in place: a submessage that is passed in would be copied, and this is the hot path.
        message = message_type(index=index)
        delta = message.delta
        delta.text = event.text
        delta.token_ids.extend(event.token_ids)
        if event.sequence_index:
            delta.sequence_index = event.sequence_index
        if event.logprobs:
            delta.logprobs.extend(_logprobs(event.logprobs))
        if event.finish_reason is not None:
            delta.finish_reason = _reason(event.finish_reason)
        return message
    if type(event) is Started:
        started = common_pb2.StreamStarted(request_id=request_id, model=model, prompt_tokens=event.prompt_tokens)
        return message_type(index=index, started=started)
    assert type(event) is Finished
    end = _finished(event)
    if chat_message is not None:
        end.message.CopyFrom(chat_message)
    return message_type(index=index, finished=end)


def fill_unary(response: UnaryMessage, output: UnaryOutput, finished: Finished) -> None:
    """Fills a reply from a request that ended well."""
    response.text = "".join(output.texts[0])
    response.token_ids.extend(output.token_ids[0])
    response.logprobs.extend(_logprobs(output.logprobs[0]))
    response.finish_reason = _reason(finished.finish_reason)
    response.usage.CopyFrom(_usage(finished))
    response.timings.CopyFrom(_timings(finished))
    response.tokens_per_second = response.timings.tokens_per_second
    if finished.sequences:
        match = _stop_match(finished.sequences[0])
        if match is not None:
            response.stop_match.CopyFrom(match)
    if finished.prompt_logprobs:
        response.prompt_logprobs.extend(_logprobs(finished.prompt_logprobs))
    if len(finished.sequences) > 1:
        for index, end in enumerate(finished.sequences):
            sequence = _sequence(index, end)
            sequence.text = "".join(output.texts[index])
            sequence.token_ids.extend(output.token_ids[index])
            sequence.logprobs.extend(_logprobs(output.logprobs[index]))
            response.sequences.append(sequence)


def assistant_message(text: str, *, tool_names: Sequence[str], id_prefix: str) -> common_pb2.ChatMessage:
    """The text as an assistant's message. Calls of the tools that were offered are taken out of its content; their
    ids are the prefix and their position, so that the same answer has the same ids.
    """
    if not tool_names:
        return common_pb2.ChatMessage(role="assistant", content=text)
    positions = itertools.count()
    parsed = parse_tool_calls(text, tool_names=tool_names, make_id=lambda: f"{id_prefix}-{next(positions)}")
    return common_pb2.ChatMessage(
        role="assistant",
        content=parsed.content,
        tool_calls=[
            common_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in parsed.tool_calls
        ],
    )


def _finished(event: Finished) -> common_pb2.StreamFinished:
    message = common_pb2.StreamFinished(
        finish_reason=_reason(event.finish_reason), usage=_usage(event), timings=_timings(event)
    )
    if event.failure is not None:
        message.error.reason = event.failure.reason
        message.error.message = event.failure.message
        message.error.retryable = event.failure.retry_delay_s is not None
    elif event.sequences:
        match = _stop_match(event.sequences[0])
        if match is not None:
            message.stop_match.CopyFrom(match)
    if event.prompt_logprobs:
        message.prompt_logprobs.extend(_logprobs(event.prompt_logprobs))
    if len(event.sequences) > 1:
        message.sequences.extend(_sequence(index, end) for index, end in enumerate(event.sequences))
    return message


def _usage(event: Finished) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=event.prompt_tokens,
        completion_tokens=event.completion_tokens,
        total_tokens=event.prompt_tokens + event.completion_tokens,
        cached_prompt_tokens=event.cached_prompt_tokens,
    )


def _timings(event: Finished) -> common_pb2.Timings:
    busy_s = event.prefill_s + event.decode_s
    return common_pb2.Timings(
        queue_s=event.queue_s,
        prefill_s=event.prefill_s,
        decode_s=event.decode_s,
        ttft_s=event.ttft_s,
        total_s=event.total_s,
        tokens_per_second=event.completion_tokens / busy_s if busy_s > 0 else 0.0,
    )


def _sequence(index: int, end: SequenceEnd) -> common_pb2.SequenceOutput:
    return common_pb2.SequenceOutput(
        sequence_index=index, finish_reason=_reason(end.finish_reason), stop_match=_stop_match(end)
    )


def _stop_match(end: SequenceEnd) -> common_pb2.StopMatch | None:
    if end.stop is None:
        return None
    if isinstance(end.stop, str):
        return common_pb2.StopMatch(stop=end.stop)
    return common_pb2.StopMatch(token_id=end.stop)


def _logprobs(entries: Iterable[TokenLogprob]) -> Iterable[common_pb2.TokenLogprob]:
    for entry in entries:
        yield common_pb2.TokenLogprob(
            token_id=entry.token_id,
            token=entry.token,
            logprob=entry.logprob,
            top=[
                common_pb2.TokenAlternative(token_id=other.token_id, token=other.token, logprob=other.logprob)
                for other in entry.top
            ],
        )


def _reason(reason: FinishReason) -> common_pb2.FinishReason:
    return cast("common_pb2.FinishReason", int(reason))
