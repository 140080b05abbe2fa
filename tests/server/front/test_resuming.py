"""Streams that break and go on: over a real gRPC connection."""

from __future__ import annotations

import asyncio
import contextlib

import grpc

from tests.server.front import scripted
from tests.server.front.stack import Stack, collect, error_of, resumed, stream_request, until
from vorta import errors
from vorta.v1 import common_pb2, inference_pb2
from vorta_server.engine.request import (
    Started,
)
from vorta_server.front.resume import LOG_BYTES


async def test_a_broken_stream_goes_on_and_continues_where_it_stopped(stack):
    release = asyncio.Event()

    async def script(worker, message):
        worker.send_events(Started(message.request_id, 3), scripted.delta(message.request_id, "a", 1))
        await release.wait()
        worker.send_events(scripted.delta(message.request_id, "b", 2))
        worker.send_events(scripted.finished(message.request_id, 2))

    stack.worker.script = script
    call = stack.inference.StreamGenerate(stream_request(request_id="r", resume_window_s=60))
    seen = [await call.read(), await call.read()]
    call.cancel()
    await until(lambda: stack.admission.num_in_flight == 0)
    tail = asyncio.ensure_future(resumed(stack, "r", seen[-1].index + 1))
    await until(lambda: stack.admission.num_in_flight == 1)
    release.set()
    events = await tail
    assert [event.WhichOneof("event") for event in events] == ["delta", "finished"]
    assert events[0].delta.text == "b"
    assert not stack.worker.cancelled
    # The whole stream can be had again while the window lasts.
    again = await resumed(stack, "r", 0)
    assert "".join(event.delta.text for event in again) == "ab"
    assert again[0].index == 0
    assert again[-1].index == events[-1].index


async def test_resume_before_the_first_event(stack):
    release = asyncio.Event()

    async def script(worker, message):
        await release.wait()
        await scripted.speak(worker, message)

    stack.worker.script = script
    call = stack.inference.StreamGenerate(stream_request(request_id="r", resume_window_s=60))
    reading = asyncio.ensure_future(call.read())
    await until(lambda: stack.worker.submitted)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    await until(lambda: stack.admission.num_in_flight == 0)
    tail = asyncio.ensure_future(resumed(stack, "r", 0))
    await until(lambda: stack.admission.num_in_flight == 1)
    release.set()
    events = await tail
    assert events[0].HasField("started")
    assert "".join(event.delta.text for event in events) == "w0 w1 w2 "


async def test_resume_takes_over_from_a_connection_that_still_looks_alive(stack):
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request(request_id="r", resume_window_s=60))
    await call.read()
    await call.read()
    second = stack.inference.ResumeGenerate(inference_pb2.ResumeGenerateRequest(request_id="r", next_index=0))
    assert (await second.read()).HasField("started")
    assert type(await error_of(call)) is errors.Cancelled
    await stack.inference.CancelGenerate(inference_pb2.CancelGenerateRequest(request_id="r"))
    events = await collect(second)
    assert events[-1].finished.finish_reason == common_pb2.FINISH_REASON_CANCELLED


async def test_resume_of_unknown_foreign_expired_and_gone(tmp_path):
    stack = Stack(tmp_path)
    stack.budget.max_bytes_per_request = 2000
    async with stack:
        error = await error_of(stack.inference.ResumeGenerate(inference_pb2.ResumeGenerateRequest(request_id="nobody")))
        assert (type(error), error.reason) == (errors.NotFound, "REQUEST_NOT_FOUND")
        with contextlib.suppress(grpc.aio.AioRpcError):  # a burst may outrun so small a log
            await collect(
                stack.inference.StreamGenerate(
                    stream_request(request_id="r", resume_window_s=60, max_tokens=100),
                    metadata=(("authorization", "a"),),
                )
            )
        await until(lambda: stack.generations.num_running == 0)
        for request_id, index, tenant, expected in (
            ("r", 0, "b", errors.NotFound),
            ("r", 0, "a", errors.OutOfRange),
            ("r", 1000, "a", errors.OutOfRange),
            ("r", -1, "a", errors.InvalidArgument),
        ):
            call = stack.inference.ResumeGenerate(
                inference_pb2.ResumeGenerateRequest(request_id=request_id, next_index=index),
                metadata=(("authorization", tenant),),
            )
            error = await error_of(call)
            assert type(error) is expected
        assert stack.budget.used_bytes <= 2000 + LOG_BYTES
        tail = await resumed(stack, "r", 101, "a")
        assert tail[0].HasField("finished")
        await collect(stack.inference.StreamGenerate(stream_request(request_id="s", resume_window_s=0.01)))
        await until(lambda: stack.generations.num_known == 1)
        error = await error_of(stack.inference.ResumeGenerate(inference_pb2.ResumeGenerateRequest(request_id="s")))
        assert error.reason == "REQUEST_NOT_FOUND"


async def test_an_expired_window_cancels_what_runs(stack):
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request(request_id="r", resume_window_s=0.01))
    await call.read()
    call.cancel()
    async with asyncio.timeout(60):
        await stack.worker.cancel_seen.wait()
    await until(lambda: stack.generations.num_known == 0)
    assert stack.budget.used_bytes == 0


async def test_a_full_budget_forgets_the_longest_ended_request(tmp_path):
    stack = Stack(tmp_path)
    stack.budget.max_bytes = 3 * LOG_BYTES
    async with stack:
        for number in range(5):
            await collect(stack.inference.StreamGenerate(stream_request(request_id=f"r{number}", resume_window_s=60)))
        assert stack.generations.num_known <= 3
        error = await error_of(stack.inference.ResumeGenerate(inference_pb2.ResumeGenerateRequest(request_id="r0")))
        assert error.reason == "REQUEST_NOT_FOUND"
        assert (await resumed(stack, "r4", 0))[-1].HasField("finished")


async def test_a_refused_resumable_request_leaves_no_log(stack):
    stack.worker.script = scripted.hang
    call = stack.inference.StreamGenerate(stream_request(request_id="r", resume_window_s=60))
    await call.read()
    before = stack.budget.used_bytes
    error = await error_of(stack.inference.StreamGenerate(stream_request(request_id="r", resume_window_s=60)))
    assert type(error) is errors.AlreadyExists
    assert stack.budget.used_bytes == before
    call.cancel()
