"""The interceptor chain: order, refusals, and what becomes of exceptions."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from vorta.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, NotFound
from vorta.v1 import inference_pb2
from vorta_server.front.call import CallContext, request_id_from
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.method import Method, bind_service

DETOKENIZE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name["Detokenize"]


class Recorder:
    """Notes what it sees, and refuses when told to."""

    def __init__(self, name, notes, refusal=None):
        self.name, self.notes, self.refusal = name, notes, refusal

    async def enter(self, method, call):
        self.notes.append(f"enter {self.name}")
        if self.refusal is not None:
            raise self.refusal

    def leave(self, method, call, error):
        self.notes.append(f"leave {self.name} {type(error).__name__}")


def method(function, *, is_streaming=False):
    return Method(
        path="/test/Call",
        request_type=inference_pb2.DetokenizeRequest,
        response_type=inference_pb2.DetokenizeResponse,
        is_streaming=is_streaming,
        function=function,
    )


def context(**fields):
    return CallContext(method="/test/Call", request_id="r1", start_s=time.monotonic(), **fields)


async def answer(request, call):
    return inference_pb2.DetokenizeResponse(text="x" * len(request.token_ids))


async def test_order_and_parsing():
    notes = []
    chain = InterceptorChain([Recorder("a", notes), Recorder("b", notes)])
    data = inference_pb2.DetokenizeRequest(token_ids=[1, 2]).SerializeToString()
    reply = await chain.unary(method(answer), data, context())
    assert reply.text == "xx"
    assert notes == ["enter a", "enter b", "leave b NoneType", "leave a NoneType"]


async def test_a_refusal_stops_the_call_and_is_seen_outside():
    notes = []
    chain = InterceptorChain([Recorder("a", notes), Recorder("b", notes, NotFound("no"))])
    with pytest.raises(NotFound):
        await chain.unary(method(answer), b"", context())
    assert notes == ["enter a", "enter b", "leave a NotFound"]


async def test_malformed_bytes_are_refused():
    chain = InterceptorChain([])
    with pytest.raises(InvalidArgument) as caught:
        await chain.unary(method(answer), b"\xff\xff", context())
    assert caught.value.reason == "MALFORMED_MESSAGE"
    data = b"\x0a\x02\xc3\x28"  # field 1, the model's id, which is not UTF-8
    with pytest.raises(InvalidArgument):
        await chain.unary(method(answer), data, context())


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_unknown_exceptions_tell_the_request_id_and_nothing_else(is_streaming, caplog):
    async def fail(request, call):
        raise RuntimeError("the secret")

    async def fail_in_stream(request, call):
        yield inference_pb2.DetokenizeResponse(text="a")
        raise RuntimeError("the secret")

    notes = []
    chain = InterceptorChain([Recorder("a", notes)])

    async def run():
        if not is_streaming:
            return await chain.unary(method(fail), b"", context())
        async with aclosing(chain.stream(method(fail_in_stream, is_streaming=True), b"", context())) as replies:
            return [reply async for reply in replies]

    with pytest.raises(Internal) as caught:
        await run()
    assert "secret" not in caught.value.message
    assert caught.value.metadata == {"request_id": "r1"}
    assert "the secret" in caplog.text
    assert notes[-1] == "leave a Internal"


@pytest.mark.parametrize(("fields", "expected"), [({}, Cancelled), ({"deadline_s": 0.0}, DeadlineExceeded)])
async def test_a_caller_that_goes_away_is_counted_as_such(fields, expected):
    async def hang(request, call):
        await asyncio.Event().wait()

    notes = []
    chain = InterceptorChain([Recorder("a", notes)])
    task = asyncio.ensure_future(chain.unary(method(hang), b"", context(**fields)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes[-1] == f"leave a {expected.__name__}"


async def test_a_stream_left_early_is_closed():
    closed = []

    async def forever(request, call):
        try:
            while True:
                yield inference_pb2.DetokenizeResponse(text="a")
        finally:
            closed.append(True)

    notes = []
    chain = InterceptorChain([Recorder("a", notes)])
    async with aclosing(chain.stream(method(forever, is_streaming=True), b"", context())) as replies:
        async for _ in replies:
            break
    assert closed == [True]
    assert notes[-1] == "leave a Cancelled"


def test_binding_needs_every_rpc():
    with pytest.raises(AttributeError):
        bind_service(DETOKENIZE.containing_service, object())


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "é"])
def test_a_bad_request_id_is_replaced(given):
    made = request_id_from({"x-request-id": given})
    assert made != given
    assert len(made) == 16


def test_made_request_ids_differ():
    assert len({request_id_from({}) for _ in range(1000)}) == 1000


def test_only_the_first_interruption_counts():
    interrupts = []
    call = context(on_interrupt=lambda: interrupts.append(1))
    call.interrupt(NotFound("first"))
    call.interrupt(NotFound("second"))
    assert call.interruption.message == "first"
    assert interrupts == [1]
