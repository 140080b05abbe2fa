"""The worker's socket: frames survive any cutting, readers that are slow or gone cost a bounded amount."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.engine.request import Delta, SamplingParams
from vorta_server.workers.protocol import (
    HEADER,
    Cancel,
    FrameBuffer,
    Prompt,
    Step,
    Submit,
    decode_front_message,
    decode_worker_message,
    encode,
)
from vorta_server.workers.transport import WorkerTransport


@pytest.fixture
def transport(tmp_path: Path) -> Iterator[WorkerTransport]:
    transport = WorkerTransport(tmp_path / "w.sock", max_unsent_bytes=1 << 20)
    yield transport
    transport.close()


def connect(tmp_path: Path) -> socket.socket:
    front = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    front.connect(str(tmp_path / "w.sock"))
    return front


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=40), max_size=8),
    cuts=st.lists(st.integers(1, 50) | st.integers(1, 2000), min_size=1, max_size=60),
)
def test_frames_survive_any_cutting(texts: list[str], cuts: list[int]) -> None:
    messages = [Submit(request_id=t, prompt=Prompt(text=t), sampling=SamplingParams(stop=(t,))) for t in texts]
    data = b"".join(bytes(encode(message)) for message in messages)
    buffer, bodies, at, turn = FrameBuffer(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        bodies += buffer.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert [decode_front_message(body) for body in bodies] == messages


def test_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        FrameBuffer(max_message_bytes=10).feed(HEADER.pack(11))


def test_messages_both_ways_and_a_lost_front(tmp_path: Path, transport: WorkerTransport) -> None:
    front = connect(tmp_path)
    opened, _, _ = transport.poll(1.0)
    (connection,) = opened
    front.sendall(encode(Cancel("a")) + encode(Cancel("b")))
    _, received, _ = transport.poll(1.0)
    assert [(c, m.request_id) for c, m in received] == [(connection, "a"), (connection, "b")]
    transport.send(connection, Step([Delta("a", 0, "hi", [1])]))
    (body,) = FrameBuffer().feed(front.recv(4096))
    step = decode_worker_message(body)
    assert isinstance(step, Step)
    assert step.events == [Delta("a", 0, "hi", [1])]
    front.close()
    _, _, lost = transport.poll(1.0)
    assert lost == [connection]
    transport.send(connection, Step([]))  # to a front that is gone: dropped


def test_garbage_drops_the_connection_only(tmp_path: Path, transport: WorkerTransport) -> None:
    bad, good = connect(tmp_path), connect(tmp_path)
    transport.poll(1.0)
    transport.poll(0.1)
    bad.sendall(HEADER.pack(4) + b"\xff\xff\xff\xff")
    _, received, lost = transport.poll(1.0)
    assert received == []
    assert len(lost) == 1
    good.sendall(encode(Cancel("x")))
    _, received, _ = transport.poll(1.0)
    assert len(received) == 1
    bad.close()
    good.close()


def test_slow_front_is_kept_up_to_the_bound_then_dropped(tmp_path: Path, transport: WorkerTransport) -> None:
    front = connect(tmp_path)
    ((connection,), _, _) = transport.poll(1.0)
    message = Step([Delta("a", 0, "x" * 100_000, [1])])
    for _ in range(4):
        transport.send(connection, message)
    received, buffer = [], FrameBuffer()
    front.settimeout(5)
    while len(received) < 4:
        received += buffer.feed(front.recv(1 << 16))
        transport.poll(0)
    for _ in range(40):
        transport.send(connection, message)
    assert not connection.is_open
    _, _, lost = transport.poll(0)
    assert lost == [connection]
    front.close()


def test_wake_ends_a_wait(transport: WorkerTransport) -> None:
    transport.wake()
    assert transport.poll(60.0) == ([], [], [])


def test_close_removes_the_socket_and_may_be_repeated(tmp_path: Path, transport: WorkerTransport) -> None:
    front = connect(tmp_path)
    transport.poll(1.0)
    transport.close()
    transport.close()
    assert not (tmp_path / "w.sock").exists()
    assert front.recv(1) == b""
    front.close()
