"""One call's parts that the sync and the async client share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from vorta import _request
from vorta._channel import ChannelConfig, Deadline
from vorta._method import INFERENCE, Method
from vorta._progress import Move, StreamProgress
from vorta.errors import Cancelled
from vorta.retry import Retrier
from vorta.v1 import inference_pb2

CANCEL_TIMEOUT_S = 2.0
"""How long closing a stream waits for the server to confirm the cancel, in seconds."""

HEALTH_TIMEOUT_S = 10.0
"""Deadline of a health check when none is given, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCall:
    """What a stream needs to open its RPCs."""

    config: ChannelConfig
    method: Method | None
    """The stream's own RPC; None when it only resumes."""
    request: Message | None
    progress: StreamProgress
    deadline: Deadline
    resume_method: Method = field(default_factory=lambda: INFERENCE["ResumeGenerate"])

    def rpc(self, move: Move) -> tuple[Method, Any]:
        """The method and request of a step."""
        if move is Move.START and self.method is not None:
            return self.method, self.request
        progress = self.progress
        return self.resume_method, inference_pb2.ResumeGenerateRequest(
            request_id=progress.request_id, next_index=progress.next_index
        )


def new_stream_call(
    config: ChannelConfig,
    retrier: Retrier,
    method: str,
    request: Message,
    resume_window_s: float | None,
    timeout_s: float | None,
) -> StreamCall:
    """A StreamGenerate or StreamChat call."""
    request_id = _request.open_stream_request(request, resume_window_s)
    deadline = Deadline(config.timeout_s if timeout_s is None else timeout_s)
    window: Any = request
    progress = StreamProgress(
        request_id=request_id,
        retrier=retrier,
        deadline=deadline,
        resume_window_s=window.resume_window_s,
    )
    return StreamCall(config=config, method=INFERENCE[method], request=request, progress=progress, deadline=deadline)


def resumed_stream_call(
    config: ChannelConfig, retrier: Retrier, request_id: str, next_index: int, timeout_s: float | None
) -> StreamCall:
    """A call that continues a request of an earlier stream."""
    deadline = Deadline(config.timeout_s if timeout_s is None else timeout_s)
    request = _request.simple_request(inference_pb2.ResumeGenerateRequest, request_id=request_id, next_index=next_index)
    progress = StreamProgress(
        request_id=request.request_id,
        retrier=retrier,
        deadline=deadline,
        resume_window_s=_request.DEFAULT_RESUME_WINDOW_S,
        next_index=request.next_index,
        can_start=False,
    )
    return StreamCall(config=config, method=None, request=None, progress=progress, deadline=deadline)


def closed_client() -> Cancelled:
    """The error of a call on a closed client."""
    return Cancelled("the client is closed")
