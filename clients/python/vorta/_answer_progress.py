"""What has arrived of an answer: the part that the sync and the async stream share. Knows no grpc.

An answer is not resumed: a broken connection ends it, and the server stops its work.
"""

from __future__ import annotations

from typing import Any

from vorta import _response, _vector_response
from vorta.answer_result import Answer, AnswerEvent, AnswerFinished, AnswerHits
from vorta.errors import Internal
from vorta.result import Started


class AnswerProgress:
    """One answer so far. The reader's alone."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.hits: AnswerHits | None = None
        self.started: Started | None = None
        self.finished: AnswerFinished | None = None
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def accept(self, message: Any) -> AnswerEvent | None:
        """The message's event; None after the end, or for a kind that only newer clients know."""
        if self.finished is not None:
            return None
        match message.WhichOneof("event"):
            case "hits":
                self.hits = AnswerHits(index=message.index, hits=_vector_response.hits(message.hits.hits))
                return self.hits
            case "started":
                self.started = _response.started(message.index, message.started)
                return self.started
            case "delta":
                delta = _response.delta(message.index, message.delta)
                self._texts.append(delta.text)
                return delta
            case "finished":
                self.finished = AnswerFinished(
                    index=message.index,
                    result=_response.finished(message.index, message.finished.result),
                    cited_ids=tuple(message.finished.cited_ids),
                )
                return self.finished
        return None

    def end(self) -> None:
        """The RPC ended well. Raises what the end of the request stands for, Internal when there was none."""
        if self.finished is None:
            raise Internal("the server ended the stream without a finished event")
        error = _response.error_of(self.finished.result)
        if error is not None:
            raise error

    def answer(self) -> Answer:
        """The whole of what arrived. Raises Internal before the end."""
        if self.finished is None:
            raise Internal("the request has not ended")
        result = self.finished.result
        return Answer(
            request_id=self.started.request_id if self.started else self.request_id,
            model=self.started.model if self.started else "",
            text=self.text,
            hits=self.hits.hits if self.hits else (),
            cited_ids=self.finished.cited_ids,
            finish_reason=result.finish_reason,
            usage=result.usage,
            timings=result.timings,
        )
