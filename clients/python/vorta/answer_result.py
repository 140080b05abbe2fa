"""What answering from a collection returns: frozen values, without grpc or protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from vorta.result import Delta, Finished, FinishReason, Started, Timings, Usage
from vorta.vector_result import Hit

__all__ = ["Answer", "AnswerEvent", "AnswerFinished", "AnswerHits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHits:
    """The first event of an answer: what was found. The first hit is passage [1] of the context."""

    index: int
    hits: tuple[Hit, ...]

    @property
    def text(self) -> str:
        """Always empty; every event has a text, so that a loop may print it unseen."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFinished:
    """The last event of an answer."""

    index: int
    result: Finished
    """How generation ended."""
    cited_ids: tuple[str, ...]
    """Ids of the hits that the answer rests on, in the order of the hits."""

    @property
    def text(self) -> str:
        """Always empty, as in `AnswerHits`."""
        return ""


AnswerEvent = AnswerHits | Started | Delta | AnswerFinished
"""One event of an answer. `index` grows; `text` is what to print."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer."""

    request_id: str
    model: str
    text: str
    hits: tuple[Hit, ...]
    """What was found; the first is passage [1]."""
    cited_ids: tuple[str, ...]
    """Ids of the hits that the answer rests on, in the order of the hits."""
    finish_reason: FinishReason
    usage: Usage
    timings: Timings

    @property
    def cited_hits(self) -> tuple[Hit, ...]:
        """The hits that the answer rests on."""
        return tuple(hit for hit in self.hits if hit.id in self.cited_ids)

    def __str__(self) -> str:
        return self.text
