"""Generate, Chat, their streams and the rest of InferenceService over a real gRPC connection."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from tests.server.front import scripted
from tests.server.front.stack import Stack, collect, error_of, request, resumed, stream_request, until
from vorta import errors
from vorta.v1 import common_pb2, inference_pb2
from vorta_server.engine.request import (
    Delta,
    Failure,
    Finished,
    FinishReason,
    SequenceEnd,
    Started,
    TokenAlternative,
    TokenLogprob,
)
from vorta_server.front.call import CallContext
from vorta_server.front.inference_service import InferenceConfig


async def test_generate_replies_with_text_usage_and_timings(stack):
    reply = await stack.inference.Generate(request())
    assert reply.text == "w0 w1 w2 "
    assert list(reply.token_ids) == [0, 1, 2]
    assert reply.model == "scripted"
    assert reply.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (3, 3, 6)
    assert reply.timings.ttft_s == pytest.approx(0.011)
    assert reply.tokens_per_second == reply.timings.tokens_per_second == pytest.approx(30)
    assert not reply.sequences


async def test_generate_of_several_sequences(stack):
    reply = await stack.inference.Generate(request(n=3, max_tokens=2))
    assert [sequence.text for sequence in reply.sequences] == ["w0 w1 "] * 3
    assert [sequence.sequence_index for sequence in reply.sequences] == [0, 1, 2]
    assert reply.usage.completion_tokens == 6


async def test_fields_reach_the_worker_and_defaults_are_the_models(stack):
    await stack.inference.Generate(
        request(min_p=0.25, stop=["x", "yz"], seed=-5, logit_bias={3: 1.5}, priority=-7, n=2)
    )
    (sent,) = stack.worker.submitted
    assert sent.prompt.text == "hello"
    assert sent.priority == -7
    sampling = sent.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.min_p, sampling.stop, sampling.seed, sampling.n) == (0.25, ("x", "yz"), -5, 2)
    assert sampling.logit_bias == {3: 1.5}
    assert sampling.skip_special_tokens


async def test_stop_match_and_logprobs(stack):
    async def script(worker, message):
        score = TokenLogprob(5, "a", -0.5, (TokenAlternative(5, "a", -0.5), TokenAlternative(6, "b", -1.5)))
        prompt = [TokenLogprob(1, "p", None), TokenLogprob(2, "q", -2.0)]
        end = Finished(
            request_id=message.request_id,
            finish_reason=FinishReason.STOP,
            sequences=[SequenceEnd(FinishReason.STOP, "END", 1)],
            prompt_tokens=2,
            completion_tokens=1,
            prompt_logprobs=prompt,
        )
        worker.send_events(Started(message.request_id, 2), Delta(message.request_id, 0, "a", [5], [score]), end)

    stack.worker.script = script
    reply = await stack.inference.Generate(request(logprobs=2, prompt_logprobs=0))
    assert reply.stop_match.stop == "END"
    assert [entry.token for entry in reply.logprobs[0].top] == ["a", "b"]
    assert reply.logprobs[0].logprob == pytest.approx(-0.5)
    assert not reply.prompt_logprobs[0].HasField("logprob")
    assert reply.prompt_logprobs[1].logprob == pytest.approx(-2.0)


async def test_request_id_from_field_then_metadata_then_made(stack):
    metadata = (("x-request-id", "from-metadata"),)
    call = stack.inference.Generate(request(), metadata=metadata)
    assert (await call).request_id == "from-metadata"
    assert dict(await call.trailing_metadata())["x-request-id"] == "from-metadata"
    call = stack.inference.Generate(request(request_id="own"), metadata=metadata)
    assert (await call).request_id == "own"
    first, second = [(await stack.inference.Generate(request())).request_id for _ in range(2)]
    assert first != second


async def test_chat_renders_messages_and_parses_tool_calls(stack):
    async def script(worker, message):
        text = 'Let me see. <tool_call>{"name": "add", "arguments": {"a":  1}}</tool_call>'
        worker.send_events(
            Started(message.request_id, 3),
            scripted.delta(message.request_id, text),
            scripted.finished(message.request_id, 1),
        )

    stack.worker.script = script
    parameters = Struct()
    parameters.update({"type": "object", "maxProperties": 2, "ratio": 0.5, "list": [1, None, True]})
    reply = await stack.inference.Chat(
        inference_pb2.ChatRequest(
            messages=[
                common_pb2.ChatMessage(role="system", content="Be brief."),
                common_pb2.ChatMessage(
                    role="assistant", tool_calls=[common_pb2.ToolCall(id="1", name="add", arguments="{}")]
                ),
                common_pb2.ChatMessage(role="tool", content="3", tool_call_id="1"),
            ],
            tools=[common_pb2.Tool(name="add", description="Adds.", parameters=parameters)],
            request_id="r1",
        )
    )
    assert reply.message.role == "assistant"
    assert reply.message.content == "Let me see."
    (call,) = reply.message.tool_calls
    assert (call.id, call.name, call.arguments) == ("call-r1-0", "add", '{"a": 1}')
    prompt = stack.worker.submitted[0].prompt
    assert [message.role for message in prompt.messages] == ["system", "assistant", "tool"]
    assert prompt.add_generation_prompt
    assert prompt.tools[0].parameters == {
        "type": "object",
        "maxProperties": 2,
        "ratio": 0.5,
        "list": [1, None, True],
    }
    assert isinstance(prompt.tools[0].parameters["maxProperties"], int)


async def test_worker_refusal_becomes_a_status_with_details(stack):
    async def script(worker, message):
        worker.refuse(
            message.request_id,
            Failure(
                3,
                "CONTEXT_LENGTH_EXCEEDED",
                "too long",
                {"field": "max_tokens", "prompt_tokens": "200"},
            ),
        )

    stack.worker.script = script
    for call in (stack.inference.Generate(request()), stack.inference.StreamGenerate(stream_request())):
        error = await error_of(call)
        assert type(error) is errors.InvalidArgument
        assert error.reason == "CONTEXT_LENGTH_EXCEEDED"
        assert error.metadata == {"field": "max_tokens", "prompt_tokens": "200"}


@pytest.mark.parametrize(
    ("reason", "error_type"),
    [
        (FinishReason.CANCELLED, errors.Cancelled),
        (FinishReason.DEADLINE, errors.DeadlineExceeded),
        (FinishReason.DRAINING, errors.Unavailable),
        (FinishReason.ERROR, errors.Internal),
    ],
)
async def test_unary_ends_that_are_no_reply(stack, reason, error_type):
    async def script(worker, message):
        worker.send_events(Started(message.request_id, 3), scripted.finished(message.request_id, 1, reason))

    stack.worker.script = script
    assert type(await error_of(stack.inference.Generate(request()))) is error_type


# Streams


async def test_stream_starts_counts_up_and_ends_once(stack):
    events = await collect(stack.inference.StreamGenerate(stream_request(max_tokens=20)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert events[0].started.model == "scripted"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    indexes = [event.index for event in events]
    assert indexes == sorted(set(indexes))
    assert (indexes[0], indexes[-1]) == (0, 21)
    assert "".join(event.delta.text for event in events) == "".join(f"w{i} " for i in range(20))
    assert [token for event in events for token in event.delta.token_ids] == list(range(20))
    assert events[-1].finished.usage.completion_tokens == 20


async def test_stream_of_several_sequences(stack):
    events = await collect(stack.inference.StreamGenerate(stream_request(n=4, max_tokens=30)))
    indexes = [event.index for event in events]
    assert indexes == sorted(set(indexes))
    assert indexes[-1] == 121
    for index in range(4):
        text = "".join(
            event.delta.text for event in events if event.HasField("delta") and event.delta.sequence_index == index
        )
        assert text == "".join(f"w{i} " for i in range(30))
    assert len(events[-1].finished.sequences) == 4


async def test_stream_chat(stack):
    events = await collect(
        stack.inference.StreamChat(
            inference_pb2.StreamChatRequest(messages=[common_pb2.ChatMessage(role="user", content="hi")], max_tokens=2)
        )
    )
    assert events[-1].finished.finish_reason == common_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("window_s", [0.0, 60.0])
async def test_stream_chat_with_tools_ends_with_the_message(stack, window_s):
    async def script(worker, message):
        worker.send_events(Started(message.request_id, 3))
        for text in ("Let me see. <tool", '_call>{"name": "add", "arg', 'uments": {"a": 1}}</tool_call>'):
            worker.send_events(scripted.delta(message.request_id, text), scripted.delta(message.request_id, "no", 6, 1))
        worker.send_events(scripted.finished(message.request_id, 6, n=2))

    stack.worker.script = script
    ask = inference_pb2.StreamChatRequest(
        messages=[common_pb2.ChatMessage(role="user", content="hi")],
        tools=[common_pb2.Tool(name="add")],
        request_id="r",
        n=2,
        resume_window_s=window_s,
    )
    ends = [(await collect(stack.inference.StreamChat(ask)))[-1].finished]
    if window_s:
        ends.append((await resumed(stack, "r", 1))[-1].finished)
    for end in ends:
        assert end.message.role == "assistant"
        assert end.message.content == "Let me see."
        (call,) = end.message.tool_calls
        assert (call.id, call.name, call.arguments) == ("call-r-0", "add", '{"a": 1}')


async def test_stream_chat_without_tools_has_no_message(stack):
    ask = inference_pb2.StreamChatRequest(messages=[common_pb2.ChatMessage(role="user", content="hi")])
    assert not (await collect(stack.inference.StreamChat(ask)))[-1].finished.HasField("message")


async def test_failure_after_the_start_is_an_event(stack):
    async def script(worker, message):
        failure = Failure(8, "QUEUE_FULL", "no KV memory left", {}, 2.0)
        end = Finished(request_id=message.request_id, finish_reason=FinishReason.ERROR, sequences=[], failure=failure)
        worker.send_events(Started(message.request_id, 3), scripted.delta(message.request_id, "a"), end)

    stack.worker.script = script
    events = await collect(stack.inference.StreamGenerate(stream_request()))
    last = events[-1].finished
    assert last.finish_reason == common_pb2.FINISH_REASON_ERROR
    assert (last.error.reason, last.error.retryable) == ("QUEUE_FULL", True)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 1)
    error = await error_of(stack.inference.Generate(request()))
    assert (type(error), error.retry_delay_s) == (errors.ResourceExhausted, 2.0)


# Cancelling, deadlines, disconnects, deaths


async def test_cancel_generate_ends_the_stream_with_cancelled(stack):
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request(request_id="victim"))
    first = await call.read()
    assert first.HasField("started")
    await stack.inference.CancelGenerate(inference_pb2.CancelGenerateRequest(request_id="victim"))
    events = await collect(call)
    assert events[-1].finished.finish_reason == common_pb2.FINISH_REASON_CANCELLED


async def test_cancel_of_unknown_foreign_or_missing_id(stack):
    error = await error_of(stack.inference.CancelGenerate(inference_pb2.CancelGenerateRequest(request_id="nobody")))
    assert (type(error), error.reason) == (errors.NotFound, "REQUEST_NOT_FOUND")
    error = await error_of(stack.inference.CancelGenerate(inference_pb2.CancelGenerateRequest()))
    assert (error.reason, error.field) == ("MISSING_FIELD", "request_id")
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request(request_id="mine"), metadata=(("authorization", "a"),))
    await call.read()
    error = await error_of(
        stack.inference.CancelGenerate(
            inference_pb2.CancelGenerateRequest(request_id="mine"), metadata=(("authorization", "b"),)
        )
    )
    assert error.reason == "REQUEST_NOT_FOUND"
    assert not stack.worker.cancelled


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(stack, is_stream):
    stack.worker.script = scripted.hang
    if is_stream:
        call = stack.inference.StreamGenerate(stream_request())
        await call.read()
    else:
        call = stack.inference.Generate(request())
    await until(lambda: stack.worker.submitted)
    call.cancel()
    async with asyncio.timeout(60):
        await stack.worker.cancel_seen.wait()
    assert stack.worker.cancelled == [stack.worker.submitted[0].request_id]
    await until(lambda: stack.generations.num_running == 0 and stack.admission.num_in_flight == 0)


async def test_the_deadline_reaches_the_worker_ahead_of_the_client(stack):
    # gRPC rounds a timeout up to what its header can say: from 100 s on to whole seconds, more than the lead.
    before_s = time.monotonic()
    await stack.inference.Generate(request(), timeout=5)
    assert before_s + 4 < stack.worker.submitted[0].deadline_s < time.monotonic() + 5


async def test_no_deadline_is_none(stack):
    await stack.inference.Generate(request())
    assert stack.worker.submitted[0].deadline_s is None


async def test_a_stream_that_passes_its_deadline_gets_its_last_event(stack):
    async def script(worker, message):
        worker.send_events(Started(message.request_id, 3), scripted.delta(message.request_id, "a"))
        await asyncio.sleep(max(0.0, message.deadline_s - time.monotonic()))
        worker.send_events(scripted.finished(message.request_id, 1, FinishReason.DEADLINE))

    stack.worker.script = script
    # Without gRPC between: a busy machine's client would hit its own deadline first.
    method = stack.methods["/vorta.v1.InferenceService/StreamGenerate"]
    now_s = time.monotonic()
    call = CallContext(method=method.path, request_id="r", start_s=now_s, deadline_s=now_s + 0.3)
    async with contextlib.aclosing(stack.chain.stream(method, stream_request(), call)) as responses:
        events = [event async for event in responses]
    assert events[-1].finished.finish_reason == common_pb2.FINISH_REASON_DEADLINE


async def test_a_worker_that_ignores_the_deadline_is_not_waited_for(stack):
    stack.worker.script = scripted.hang
    # Without gRPC between: on a busy machine the deadline could pass before the call has come.
    method = stack.methods["/vorta.v1.InferenceService/Generate"]
    now_s = time.monotonic()
    call = CallContext(method=method.path, request_id="r", start_s=now_s, deadline_s=now_s + 0.5)
    with pytest.raises(errors.DeadlineExceeded):
        await stack.chain.unary(method, request(), call)
    await until(lambda: stack.worker.cancelled and stack.admission.num_in_flight == 0)


async def test_a_dead_worker_ends_every_request_once_and_retryable(stack):
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request())
    await call.read()
    await call.read()
    unary = asyncio.ensure_future(error_of(stack.inference.Generate(request())))
    await until(lambda: len(stack.worker.submitted) == 2)
    await stack.worker.stop()
    events = await collect(call)
    assert len(events) == 1
    last = events[0].finished
    assert last.finish_reason == common_pb2.FINISH_REASON_ERROR
    assert (last.error.reason, last.error.retryable) == ("WORKER_DIED", True)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 1)
    error = await unary
    assert (type(error), error.reason, error.is_retryable) == (errors.Unavailable, "WORKER_DIED", True)
    error = await error_of(stack.inference.Generate(request()))
    assert (error.reason, error.is_retryable) == ("MODEL_NOT_READY", True)


async def test_equal_ids_collide_within_a_tenant_only(stack):
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request(request_id="same"))
    await call.read()
    error = await error_of(stack.inference.Generate(request(request_id="same")))
    assert (type(error), error.reason) == (errors.AlreadyExists, "REQUEST_ALREADY_EXISTS")
    other = stack.inference.StreamGenerate(stream_request(request_id="same"), metadata=(("authorization", "b"),))
    assert (await other.read()).HasField("started")
    call.cancel()
    await until(lambda: stack.generations.num_running == 1)
    again = stack.inference.StreamGenerate(stream_request(request_id="same"))
    assert (await again.read()).HasField("started")


async def test_a_slow_reader_costs_bounded_memory_and_its_stream(tmp_path):
    async def script(worker, message):
        worker.send_events(Started(message.request_id, 3))
        while not worker.cancelled:
            worker.send_events(scripted.delta(message.request_id, "x" * 1024))
            await asyncio.sleep(0)

    stack = Stack(tmp_path)
    stack.worker.script = script
    stack.config = InferenceConfig(max_buffered_bytes_per_stream=64 * 1024)
    async with stack:
        call = stack.inference.StreamGenerate(stream_request())
        assert (await call.read()).HasField("started")
        async with asyncio.timeout(100):
            await stack.worker.cancel_seen.wait()
        error = await error_of(call)
        assert (type(error), error.reason) == (errors.ResourceExhausted, "SLOW_READER")
        assert error.metadata["limit_bytes"] == str(64 * 1024)
        await until(lambda: stack.admission.num_in_flight == 0)


# Tokens


async def test_tokenize_and_detokenize(stack):
    reply = await stack.inference.Tokenize(inference_pb2.TokenizeRequest(text="abc"))
    assert list(reply.token_ids) == [0, 1, 2]
    assert (list(reply.tokens), reply.count, reply.max_model_len) == (["a", "b", "c"], 3, 128)
    reply = await stack.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[3, 4]))
    assert reply.text == "3 4"
    error = await error_of(stack.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[3, 1000])))
    assert error.field == "token_ids[1]"
    error = await error_of(stack.inference.Tokenize(inference_pb2.TokenizeRequest(text="refuse")))
    assert (type(error), error.field) == (errors.InvalidArgument, "text")
    error = await error_of(stack.inference.Tokenize(inference_pb2.TokenizeRequest(text="hang"), timeout=0.2))
    assert type(error) is errors.DeadlineExceeded


async def test_a_dead_worker_ends_a_tokenize_call(stack):
    call = asyncio.ensure_future(error_of(stack.inference.Tokenize(inference_pb2.TokenizeRequest(text="hang"))))
    await until(lambda: stack.worker.tokenized)
    await stack.worker.stop()
    error = await call
    assert (error.reason, error.is_retryable) == ("WORKER_DIED", True)


# Models and limits


async def test_unknown_loading_and_wrong_models(stack):
    error = await error_of(stack.inference.Generate(request(model="nope")))
    assert (type(error), error.reason, error.metadata["model"]) == (
        errors.NotFound,
        "MODEL_NOT_FOUND",
        "nope",
    )
    stack.entry.card = scripted.model_card(kind="embedding")
    error = await error_of(stack.inference.Generate(request()))
    assert (type(error), error.reason) == (errors.FailedPrecondition, "MODEL_KIND_MISMATCH")
    stack.entry.card = scripted.model_card(has_chat_template=False)
    error = await error_of(
        stack.inference.Chat(inference_pb2.ChatRequest(messages=[common_pb2.ChatMessage(role="user", content="x")]))
    )
    assert error.reason == "MODEL_KIND_MISMATCH"


async def test_too_many_calls_in_flight_are_refused(tmp_path):
    stack = Stack(tmp_path)
    stack.admission = type(stack.admission)(max_concurrent_requests=1)
    stack.worker.script = scripted.hang
    async with stack:
        call = stack.inference.StreamGenerate(stream_request())
        await call.read()
        error = await error_of(stack.inference.Generate(request()))
        assert (type(error), error.reason, error.is_retryable) == (
            errors.ResourceExhausted,
            "QUEUE_FULL",
            True,
        )


@pytest.mark.parametrize("is_draining", [False, True])
async def test_a_full_or_draining_server_still_takes_cancels(tmp_path, is_draining):
    stack = Stack(tmp_path)
    stack.admission = type(stack.admission)(max_concurrent_requests=1)
    stack.worker.script = scripted.hang
    async with stack:
        call = stack.inference.StreamGenerate(stream_request(request_id="r"))
        await call.read()
        if is_draining:
            stack.admission.drain()
        await stack.inference.CancelGenerate(inference_pb2.CancelGenerateRequest(request_id="r"))
        assert (await collect(call))[-1].finished.finish_reason == common_pb2.FINISH_REASON_CANCELLED
        await until(lambda: stack.admission.num_in_flight == 0)


async def test_draining_refuses_new_calls(stack):
    stack.admission.drain()
    error = await error_of(stack.inference.Generate(request()))
    assert (type(error), error.reason, error.is_retryable) == (errors.Unavailable, "DRAINING", True)


async def test_a_deadline_in_the_past_does_no_work(stack):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stack.inference.Generate(request(), timeout=-1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not stack.worker.submitted
