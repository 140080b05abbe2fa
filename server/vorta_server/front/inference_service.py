"""InferenceService: generation requests from messages to a worker and back. Knows no gRPC.

Methods take (request message, CallContext); streaming ones return async generators, whose end, however it comes,
cancels or detaches the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from vorta.errors import DeadlineExceeded, InvalidArgument, VortaError
from vorta.v1 import inference_pb2
from vorta_server.engine.request import Delta, Event, Finished, FinishReason, SamplingParams
from vorta_server.front import conversion
from vorta_server.front.answer import Grounder, answer_chat, cited
from vorta_server.front.call import CallContext
from vorta_server.front.deadline import DEADLINE_SLACK_S, unary_deadline
from vorta_server.front.errors import error_from_finished
from vorta_server.front.generation import Generation, GenerationTable
from vorta_server.front.output_format import called_tools, output_format
from vorta_server.front.reply import StreamMessage, UnaryOutput, assistant_message, fill_unary, stream_message
from vorta_server.front.resume import LogReader, ResumeBudget, ResumeLog
from vorta_server.front.stream import StreamBuffer
from vorta_server.front.vector_conversion import fill_hit
from vorta_server.registry.registry import ModelRegistry, ServingModel
from vorta_server.workers.pacing import WritePacer
from vorta_server.workers.protocol import Prompt

__all__ = ["InferenceConfig", "InferenceService"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig:
    """Limits of the service.

    Attributes:
        max_tokens_cap: Most tokens that one request may ask for; None for the model's context.
        max_buffered_bytes_per_stream: Events that may wait for a slow reader.
    """

    max_tokens_cap: int | None = None
    max_buffered_bytes_per_stream: int = 1 << 20


class InferenceService:
    """The handlers of `vorta.v1.InferenceService`.

    Args:
        registry: Finds models.
        generations: The running requests.
        pacer: Paces streams.
        resume_budget: Memory of the logs of resumable streams.
        config: Limits.
        grounder: Finds what grounded answers rest on.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        generations: GenerationTable,
        pacer: WritePacer,
        resume_budget: ResumeBudget,
        config: InferenceConfig,
        grounder: Grounder,
    ) -> None:
        self._registry = registry
        self._generations = generations
        self._pacer = pacer
        self._resume_budget = resume_budget
        self._config = config
        self._grounder = grounder

    async def generate(
        self, request: inference_pb2.GenerateRequest, call: CallContext
    ) -> inference_pb2.GenerateResponse:
        """Continues a prompt and replies once."""
        target = self._target(request.model)
        prompt = conversion.text_prompt(request, target.card)
        generation, output, finished = await self._run(request, target, prompt, call)
        response = inference_pb2.GenerateResponse(request_id=generation.request_id, model=generation.model)
        fill_unary(response, output, finished)
        return response

    async def chat(self, request: inference_pb2.ChatRequest, call: CallContext) -> inference_pb2.ChatResponse:
        """Answers a conversation and replies once."""
        target = self._target(request.model)
        prompt = conversion.chat_prompt(request, target.card)
        generation, output, finished = await self._run(request, target, prompt, call)
        response = inference_pb2.ChatResponse(request_id=generation.request_id, model=generation.model)
        fill_unary(response, output, finished)
        response.message.CopyFrom(
            assistant_message(
                response.text,
                tool_names=called_tools(request),
                id_prefix=f"call-{generation.request_id}",
            )
        )
        return response

    def stream_generate(
        self, request: inference_pb2.StreamGenerateRequest, call: CallContext
    ) -> AsyncGenerator[inference_pb2.StreamGenerateResponse, None]:
        """Continues a prompt and streams the tokens."""
        target = self._target(request.model)
        prompt = conversion.text_prompt(request, target.card)
        return self._stream(request, target, prompt, call, inference_pb2.StreamGenerateResponse)

    def stream_chat(
        self, request: inference_pb2.StreamChatRequest, call: CallContext
    ) -> AsyncGenerator[inference_pb2.StreamChatResponse, None]:
        """Answers a conversation and streams the tokens."""
        target = self._target(request.model)
        prompt = conversion.chat_prompt(request, target.card)
        tool_names = called_tools(request)
        return self._stream(request, target, prompt, call, inference_pb2.StreamChatResponse, tool_names)

    async def stream_answer(
        self, request: inference_pb2.StreamAnswerRequest, call: CallContext
    ) -> AsyncGenerator[inference_pb2.StreamAnswerResponse, None]:
        """Searches a collection, streams the hits, then the tokens of an answer that rests on them."""
        target = self._target(request.model)
        asked = answer_chat(request, [])
        conversion.chat_prompt(asked, target.card)  # what is wrong with the request is said before the search
        self._sampling(asked, target, call)
        output_format(asked)
        async with unary_deadline(call):
            grounding = await self._grounder.find(request, target, call)
        first = inference_pb2.StreamAnswerResponse()
        first.hits.SetInParent()
        for hit in grounding.hits:
            fill_hit(first.hits.hits.add(), hit, is_compact=False)
        yield first
        texts: list[str] = []
        chat = answer_chat(request, grounding.passages)
        async with aclosing(self.stream_chat(chat, call)) as messages:
            async for message in messages:
                response = inference_pb2.StreamAnswerResponse(index=message.index + 1)
                event = message.WhichOneof("event")
                if event == "delta":
                    texts.append(message.delta.text)
                    response.delta.CopyFrom(message.delta)
                elif event == "started":
                    response.started.CopyFrom(message.started)
                else:
                    response.finished.result.CopyFrom(message.finished)
                    response.finished.cited_ids.extend(cited("".join(texts), grounding))
                yield response

    async def cancel_generate(
        self, request: inference_pb2.CancelGenerateRequest, call: CallContext
    ) -> inference_pb2.CancelGenerateResponse:
        """Cancels a running request of the caller's tenant. Raises NotFound when there is none."""
        request_id = conversion.checked_request_id(request.request_id, required=True)
        self._generations.find_running(call.tenant, request_id).cancel()
        return inference_pb2.CancelGenerateResponse()

    async def resume_generate(
        self, request: inference_pb2.ResumeGenerateRequest, call: CallContext
    ) -> AsyncIterator[inference_pb2.ResumeGenerateResponse]:
        """Continues a stream. Raises NotFound, OutOfRange (RESUME_GONE) or InvalidArgument."""
        request_id = conversion.checked_request_id(request.request_id, required=True)
        if request.next_index < 0:
            raise InvalidArgument(f"next_index must be at least 0, got {request.next_index}", field="next_index")
        generation, log = self._generations.find_resumable(call.tenant, request_id)
        reader = log.read(request.next_index, on_overflow=call.interrupt)
        with self._reading(call):
            async for message in self._read_log(
                generation, reader, call, inference_pb2.ResumeGenerateResponse, is_first=request.next_index == 0
            ):
                yield message

    async def tokenize(
        self, request: inference_pb2.TokenizeRequest, call: CallContext
    ) -> inference_pb2.TokenizeResponse:
        """Splits text or a conversation into tokens."""
        target = self._target(request.model)
        prompt = conversion.tokenize_prompt(request, target.card)
        async with unary_deadline(call):
            reply = await target.channel.tokenize(prompt)
        return inference_pb2.TokenizeResponse(
            token_ids=reply.token_ids,
            tokens=reply.tokens,
            count=len(reply.token_ids),
            max_model_len=target.card.max_model_len,
        )

    async def detokenize(
        self, request: inference_pb2.DetokenizeRequest, call: CallContext
    ) -> inference_pb2.DetokenizeResponse:
        """Joins token ids to text."""
        target = self._target(request.model)
        token_ids = conversion.checked_token_ids("token_ids", request.token_ids, target.card.vocab_size)
        skips = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        async with unary_deadline(call):
            reply = await target.channel.detokenize(token_ids, skip_special_tokens=skips)
        return inference_pb2.DetokenizeResponse(text=reply.text)

    def _target(self, model: str) -> ServingModel:
        return self._registry.resolve(model, "generation")

    def _sampling(
        self, request: conversion.GenerationMessage, target: ServingModel, call: CallContext
    ) -> SamplingParams:
        call.report.model = target.card.model
        return conversion.sampling_params(request, target.card, max_tokens_cap=self._config.max_tokens_cap)

    async def _run(
        self,
        request: inference_pb2.GenerateRequest | inference_pb2.ChatRequest,
        target: ServingModel,
        prompt: Prompt,
        call: CallContext,
    ) -> tuple[Generation, UnaryOutput, Finished]:
        """Runs a request to its end. Raises what its caller sees instead of a reply."""
        sampling = self._sampling(request, target, call)
        wanted = output_format(request)
        output = UnaryOutput(sampling.n)
        end: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()

        def sink(event: Event) -> None:
            if type(event) is Delta:
                output.add(event)
            elif type(event) is Finished and not end.done():
                end.set_result(event)

        generation = self._generations.submit(
            target,
            request_id=conversion.checked_request_id(request.request_id, required=False) or call.request_id,
            tenant=call.tenant,
            prompt=prompt,
            sampling=sampling,
            priority=conversion.priority(request),
            deadline_s=call.deadline_s,
            sink=sink,
            output_format=wanted,
        )
        try:
            async with unary_deadline(call):
                finished = await end
        finally:
            generation.abandon()
        _report(call, finished)
        error = error_from_finished(finished)
        if error is not None:
            raise error
        return generation, output, finished

    async def _stream(
        self,
        request: inference_pb2.StreamGenerateRequest | inference_pb2.StreamChatRequest,
        target: ServingModel,
        prompt: Prompt,
        call: CallContext,
        message_type: type[StreamMessage],
        tool_names: Sequence[str] = (),
    ) -> AsyncGenerator[StreamMessage, None]:
        sampling = self._sampling(request, target, call)
        wanted = output_format(request)
        window_s = conversion.resume_window_s(request)
        request_id = conversion.checked_request_id(request.request_id, required=False) or call.request_id

        def overflow(error: VortaError) -> None:
            generation.cancel()  # at once: the reader may never come back
            call.interrupt(error)

        log: ResumeLog | None = None
        buffer: StreamBuffer | None = None
        if window_s > 0:
            log = ResumeLog(
                request_id=request_id,
                budget=self._resume_budget,
                pacer=self._pacer,
                on_evict=lambda: generation.expire(),
            )
        else:
            buffer = StreamBuffer(
                max_bytes=self._config.max_buffered_bytes_per_stream,
                pacer=self._pacer,
                on_overflow=overflow,
            )
        try:
            generation: Generation = self._generations.submit(
                target,
                request_id=request_id,
                tenant=call.tenant,
                prompt=prompt,
                sampling=sampling,
                priority=conversion.priority(request),
                deadline_s=call.deadline_s,
                sink=log.put if log is not None else buffer.put,  # type: ignore[union-attr]
                log=log,
                resume_window_s=window_s,
                tool_names=tool_names,
                output_format=wanted,
            )
        except VortaError:
            if log is not None:
                log.close()
            raise
        with self._reading(call):
            if log is not None:
                reader = log.read(0, on_overflow=call.interrupt)
                async for message in self._read_log(generation, reader, call, message_type, is_first=True):
                    yield message
                return
            assert buffer is not None
            try:
                has_started = False
                while True:
                    index, event = await buffer.next()
                    if type(event) is Finished:
                        _report(call, event)
                        if not has_started:
                            _raise_unstarted(event)
                    has_started = True
                    yield stream_message(
                        message_type,
                        index,
                        event,
                        request_id=request_id,
                        model=generation.model,
                        chat_message=generation.message,
                    )
                    if type(event) is Finished:
                        return
            finally:
                buffer.close()
                generation.abandon()

    async def _read_log(
        self,
        generation: Generation,
        reader: LogReader,
        call: CallContext,
        message_type: type[StreamMessage],
        *,
        is_first: bool,
    ) -> AsyncIterator[StreamMessage]:
        """Writes a resumable request's log to one connection."""
        generation.attach()
        call.report.model = generation.model
        try:
            while True:
                index, event = await reader.next()
                if type(event) is Finished:
                    _report(call, event)
                    if is_first and index == 0:
                        _raise_unstarted(event)
                yield stream_message(
                    message_type,
                    index,
                    event,
                    request_id=generation.request_id,
                    model=generation.model,
                    chat_message=generation.message,
                )
                if type(event) is Finished:
                    return
        finally:
            generation.detach(reader)

    @contextmanager
    def _reading(self, call: CallContext) -> Iterator[None]:
        """Counts a stream for the pacer, and ends one whose worker does not keep its deadline."""
        timer: asyncio.TimerHandle | None = None
        if call.deadline_s is not None:
            timer = asyncio.get_running_loop().call_later(
                max(0.0, call.deadline_s - time.monotonic()) + DEADLINE_SLACK_S,
                call.interrupt,
                DeadlineExceeded("the call's deadline passed and the worker did not answer"),
            )
        self._pacer.num_streams += 1
        try:
            yield
        finally:
            self._pacer.num_streams -= 1
            if timer is not None:
                timer.cancel()


def _raise_unstarted(finished: Finished) -> None:
    """A request that never started ends with a status, not with an event."""
    error = error_from_finished(finished)
    if error is not None:
        raise error


def _report(call: CallContext, finished: Finished) -> None:
    report = call.report
    report.finish_reason = FinishReason(finished.finish_reason).name
    report.prompt_tokens = finished.prompt_tokens
    report.completion_tokens = finished.completion_tokens
    report.queue_s = finished.queue_s
    report.ttft_s = finished.ttft_s
