"""What a stream does next: the part of resuming that the sync and the async stream share.

Does no input or output and knows no grpc: the streams report messages and errors here and are told whether to go on,
to resume, or to stop. Resuming loses and doubles nothing, because events carry indexes and the server keeps them:
the stream asks for the event after the last one it saw and drops what it has seen.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vorta import _response
from vorta._channel import Deadline
from vorta.errors import AlreadyExists, Internal, NotFound, OutOfRange, Unavailable, VortaError
from vorta.result import Delta, Event, Finished, Generation, SequenceOutput, Started, TokenLogprob
from vorta.retry import Retrier
from vorta.wire import CONNECTION_RETRY_DELAY_S, is_connection_failure


class Move(enum.Enum):
    """Which RPC to open."""

    START = enum.auto()
    """The request itself."""
    RESUME = enum.auto()
    """ResumeGenerate from `next_index` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Open this RPC, after waiting."""

    move: Move
    wait_s: float = 0.0


class StreamProgress:
    """One stream's place in its request. Not thread-safe: the reader's alone.

    Args:
        request_id: The request's id.
        next_index: The first event wanted.
        resume_window_s: For how long after a break resuming makes sense; 0 turns it off.
        can_start: Whether the request is at hand, so that it can be sent when it turns out that it never arrived.
    """

    def __init__(
        self,
        *,
        request_id: str,
        retrier: Retrier,
        deadline: Deadline,
        resume_window_s: float,
        next_index: int = 0,
        can_start: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request_id = request_id
        self.next_index = next_index
        self.started: Started | None = None
        self.finished: Finished | None = None
        self._retrier = retrier
        self._deadline = deadline
        self._window_s = resume_window_s
        self._can_start = can_start
        self._clock = clock
        self._has_events = False
        self._num_failures = 0
        self._broken: VortaError | None = None
        self._broken_at_s = 0.0
        self._transcript = _Transcript()

    @property
    def is_resumable(self) -> bool:
        """Whether a broken stream is resumed."""
        return self._window_s > 0

    @property
    def first_step(self) -> Step:
        """How the stream begins, and goes on after its reader was interrupted."""
        return Step(move=Move.START if self._can_start and not self._has_events else Move.RESUME)

    def accept(self, message: Any) -> Event | None:
        """The message's event; None when it was seen before, or is of a kind that only newer clients know."""
        if message.index < self.next_index or self.finished is not None:
            return None
        self.next_index = message.index + 1
        self._has_events = True
        self._broken = None
        self._num_failures = 0
        event = _response.event(message)
        if isinstance(event, Delta):
            self._transcript.add(event)
        elif isinstance(event, Started):
            self.started = event
        elif isinstance(event, Finished):
            self.finished = event
        return event

    def end(self) -> None:
        """The RPC ended well. Raises what the end of the request stands for, Internal when there was none."""
        if self.finished is None:
            raise Internal("the server ended the stream without a finished event")
        error = _response.error_of(self.finished)
        if error is not None:
            raise error

    def fail(self, error: VortaError) -> Step | None:
        """The RPC failed: what to open next, or None when nothing is missing. Raises when it cannot go on."""
        if self.finished is not None:
            self.end()
            return None
        if self._broken is None:
            if not (is_connection_failure(error) and self.is_resumable):
                raise error
            self._broken, self._broken_at_s = error, self._clock()
            return self._after_wait(Move.RESUME, error)
        if isinstance(error, NotFound) and self._can_start and not self._has_events:
            # The request never arrived, or is over without a trace: nothing of it was seen, so it may begin.
            return self._after_wait(Move.START, error)
        if isinstance(error, AlreadyExists) and not self._has_events:
            return self._after_wait(Move.RESUME, error)
        if isinstance(error, NotFound | OutOfRange):
            raise Unavailable(
                f"the connection was lost and the request cannot be resumed: {error.message}",
                reason=self._broken.reason,
                metadata={"request_id": self.request_id},
                retry_delay_s=self._broken.retry_delay_s,
            ) from error
        if not isinstance(error, Unavailable):
            raise error
        return self._after_wait(Move.RESUME, error)

    def interrupt(self) -> Step:
        """The reader gave up the RPC: what to open when it reads again."""
        if self._broken is None:
            self._broken = Unavailable(
                "the stream was interrupted", reason="CONNECTION_FAILED", retry_delay_s=CONNECTION_RETRY_DELAY_S
            )
            self._broken_at_s = self._clock()
        return Step(move=Move.RESUME)

    def generation(self) -> Generation:
        """The whole of what arrived, as `generate` would have returned it. Needs `finished`."""
        if self.finished is None:
            raise Internal("the request has not ended")
        return self._transcript.generation(self.request_id, self.started, self.finished)

    def _after_wait(self, move: Move, error: VortaError) -> Step:
        self._num_failures += 1
        wait_s = self._retrier.backoff_s(error, self._num_failures)
        elapsed_s = self._clock() - self._broken_at_s
        if (
            self._num_failures > self._retrier.policy.max_resume_attempts
            or elapsed_s + wait_s > self._window_s
            or wait_s >= self._deadline.remaining_s
        ):
            raise error
        return Step(move=move, wait_s=wait_s)


class _Transcript:
    """The text so far, by sequence."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._token_ids: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}

    def add(self, delta: Delta) -> None:
        place = delta.sequence_index
        self._texts.setdefault(place, []).append(delta.text)
        self._token_ids.setdefault(place, []).extend(delta.token_ids)
        if delta.logprobs:
            self._logprobs.setdefault(place, []).extend(delta.logprobs)

    def generation(self, request_id: str, started: Started | None, finished: Finished) -> Generation:
        sequences = tuple(
            SequenceOutput(
                sequence_index=end.sequence_index,
                text=self._text(end.sequence_index),
                token_ids=tuple(self._token_ids.get(end.sequence_index, ())),
                finish_reason=end.finish_reason,
                stop_match=end.stop_match,
                logprobs=tuple(self._logprobs.get(end.sequence_index, ())),
            )
            for end in finished.sequences
        )
        return Generation(
            request_id=request_id,
            model=started.model if started else "",
            text=self._text(0),
            token_ids=tuple(self._token_ids.get(0, ())),
            finish_reason=finished.finish_reason,
            usage=finished.usage,
            timings=finished.timings,
            tokens_per_second=finished.timings.tokens_per_second,
            stop_match=finished.stop_match,
            logprobs=tuple(self._logprobs.get(0, ())),
            prompt_logprobs=finished.prompt_logprobs,
            sequences=sequences,
            message=finished.message,
        )

    def _text(self, sequence_index: int) -> str:
        return "".join(self._texts.get(sequence_index, ()))
