"""Running generation requests by tenant and id: what CancelGenerate and ResumeGenerate find.

A `Generation` sits between a worker's channel and a reader. It sees every event once, so it is where usage is known
even when the worker died, where metrics are taken, and where a request that nobody reads any more is cancelled.
Loop thread only.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from vorta.errors import AlreadyExists, NotFound
from vorta.v1 import common_pb2
from vorta_server.engine.request import Delta, Event, Finished, SamplingParams, Started
from vorta_server.front.reply import assistant_message
from vorta_server.front.resume import LogReader, ResumeLog
from vorta_server.observability.metrics import Metrics
from vorta_server.registry.registry import ServingModel
from vorta_server.workers.protocol import OutputFormat, Prompt, Submit

__all__ = ["Generation", "GenerationTable"]


class Generation:
    """One request, from its submission until it is forgotten.

    Attributes:
        request_id: The caller's.
        tenant: Whose it is.
        model: The id of its model.
        worker_request_id: Its id on the worker's channel, unique in this process.
        log: Its event log when it is resumable, else None.
        resume_window_s: Seconds that it may go on without a reader.
        finished: Its end, once it came.
        message: The answer as a chat message, once it ended; of requests with tools only.
    """

    __slots__ = (
        "_channel",
        "_forget",
        "_metrics",
        "_num_tokens",
        "_prompt_tokens",
        "_sink",
        "_texts",
        "_timer",
        "_tool_names",
        "finished",
        "log",
        "message",
        "model",
        "request_id",
        "resume_window_s",
        "start_s",
        "tenant",
        "worker_request_id",
    )

    def __init__(
        self,
        *,
        request_id: str,
        tenant: str,
        worker_request_id: str,
        target: ServingModel,
        sink: Callable[[Event], None],
        metrics: Metrics,
        forget: Callable[[Generation], None],
        log: ResumeLog | None = None,
        resume_window_s: float = 0.0,
        tool_names: Sequence[str] = (),
    ) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.model = target.card.model
        self.worker_request_id = worker_request_id
        self.log = log
        self.resume_window_s = resume_window_s
        self.finished: Finished | None = None
        self.message: common_pb2.ChatMessage | None = None
        self.start_s = time.monotonic()
        self._channel = target.channel
        self._sink = sink
        self._metrics = metrics
        self._forget = forget
        self._prompt_tokens = 0
        self._num_tokens = 0
        self._tool_names = tool_names
        self._texts: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: Event) -> None:
        """Takes the worker's next event."""
        if type(event) is Delta:
            self._num_tokens += len(event.token_ids)
            if self._tool_names and event.sequence_index == 0:
                self._texts.append(event.text)
        elif type(event) is Started:
            self._prompt_tokens = event.prompt_tokens
        elif type(event) is Finished:
            if event.failure is not None and event.prompt_tokens == 0:
                # The worker could not tell: it died, or its connection did.
                event.prompt_tokens = self._prompt_tokens
                event.completion_tokens = self._num_tokens
                event.total_s = time.monotonic() - self.start_s
            if self._tool_names and event.failure is None:
                self.message = assistant_message(
                    "".join(self._texts), tool_names=self._tool_names, id_prefix=f"call-{self.request_id}"
                )
            self._texts.clear()
            self.finished = event
            self._metrics.observe_finished(self.model, event)
        self._sink(event)

    def cancel(self) -> None:
        """Asks the worker to end the request. Idempotent."""
        if self.finished is None:
            self._channel.cancel(self.worker_request_id)

    def abandon(self) -> None:
        """The reader of a request that is not resumable has gone: cancels it and forgets it. Idempotent."""
        self.cancel()
        self._forget(self)

    def attach(self) -> None:
        """A reader has come: the window stands still."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def detach(self, reader: LogReader) -> None:
        """A reader of the log has gone: the window begins, unless another reader took over."""
        assert self.log is not None
        if self.log.release(reader) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.resume_window_s, self.expire)

    def expire(self) -> None:
        """Ends and forgets a resumable request. Idempotent."""
        self.attach()
        self.cancel()
        self._forget(self)
        if self.log is not None:
            self.log.close()


class GenerationTable:
    """The requests of this front."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._generations: dict[tuple[str, str], Generation] = {}
        self._numbers = itertools.count(1)

    @property
    def num_running(self) -> int:
        """Requests that have not ended."""
        return sum(generation.finished is None for generation in self._generations.values())

    @property
    def num_known(self) -> int:
        """Requests that run or can be resumed."""
        return len(self._generations)

    def submit(
        self,
        target: ServingModel,
        *,
        request_id: str,
        tenant: str,
        prompt: Prompt,
        sampling: SamplingParams,
        priority: int,
        deadline_s: float | None,
        sink: Callable[[Event], None],
        log: ResumeLog | None = None,
        resume_window_s: float = 0.0,
        tool_names: Sequence[str] = (),
        output_format: OutputFormat | None = None,
    ) -> Generation:
        """Sends a request to its worker. `sink` takes its events, of which one `Finished` is the last.

        With `tool_names` the end gets a `message`, in which calls of these tools are parsed.

        Raises:
            AlreadyExists: A request of this id and tenant is running.
            Unavailable, ResourceExhausted: The worker cannot take it.
        """
        key = (tenant, request_id)
        previous = self._generations.get(key)
        if previous is not None:
            if previous.finished is None:
                raise AlreadyExists(f"a request with id {request_id} is running", metadata={"request_id": request_id})
            previous.expire()
        # Tenants may choose equal ids, and a cancelled request may still be ending when its id is used again.
        worker_request_id = f"{request_id}#{next(self._numbers)}"
        generation = Generation(
            request_id=request_id,
            tenant=tenant,
            worker_request_id=worker_request_id,
            target=target,
            sink=sink,
            metrics=self._metrics,
            forget=self._forget,
            log=log,
            resume_window_s=resume_window_s,
            tool_names=tool_names,
        )
        target.channel.submit(
            Submit(
                request_id=worker_request_id,
                prompt=prompt,
                sampling=sampling,
                priority=priority,
                deadline_s=deadline_s,
                output_format=output_format,
            ),
            generation.put,
        )
        self._generations[key] = generation
        return generation

    def find_running(self, tenant: str, request_id: str) -> Generation:
        """The tenant's running request of this id. Raises NotFound (REQUEST_NOT_FOUND)."""
        generation = self._generations.get((tenant, request_id))
        if generation is None or generation.finished is not None:
            raise _not_found(request_id)
        return generation

    def find_resumable(self, tenant: str, request_id: str) -> tuple[Generation, ResumeLog]:
        """The tenant's resumable request of this id. Raises NotFound (REQUEST_NOT_FOUND)."""
        generation = self._generations.get((tenant, request_id))
        if generation is None or generation.log is None:
            raise _not_found(request_id)
        return generation, generation.log

    def drain(self) -> None:
        """Ends the requests that nobody reads: no new connection will come to continue them."""
        for generation in list(self._generations.values()):
            if generation.log is not None and not generation.log.has_reader:
                generation.expire()

    def _forget(self, generation: Generation) -> None:
        key = (generation.tenant, generation.request_id)
        if self._generations.get(key) is generation:
            del self._generations[key]


def _not_found(request_id: str) -> NotFound:
    return NotFound(
        f"no request {request_id} is running here, or it can no longer be resumed",
        reason="REQUEST_NOT_FOUND",
        metadata={"request_id": request_id},
    )
