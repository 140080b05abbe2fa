"""What a handler knows of the call that it answers, whatever the wire."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vorta.errors import VortaError

__all__ = ["STUCK_WRITE_S", "CallContext", "CallReport", "is_request_id", "open_call", "request_id_from"]

STUCK_WRITE_S = 60.0
"""How long an interrupted stream waits for its reader to take what is being written."""

_MAX_REQUEST_ID_CHARS = 128

_IDS_AT_ONCE = 256
_new_ids: list[str] = []


@dataclass(slots=True, kw_only=True)
class CallReport:
    """What a handler tells the access log; empty for calls that generate nothing."""

    model: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class CallContext:
    """One call.

    Attributes:
        method: Full name, such as "/vorta.v1.InferenceService/Generate".
        request_id: From the `x-request-id` metadata, else made here; in the access log and in every reply.
        start_s: `time.monotonic()` of its arrival.
        deadline_s: `time.monotonic()` by which its terminal event must have been written; None for none.
        tenant: Whose call it is; requests of one tenant are invisible to others. Empty without authentication.
        metadata: The call's metadata, text values only, keys in lower case.
        report: Filled by the handler.
        on_interrupt: Ends the call's writer from outside, even while it waits for its reader. Set by the wire.
        interruption: Why it was ended so.
    """

    method: str
    request_id: str
    start_s: float
    deadline_s: float | None = None
    tenant: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    report: CallReport = field(default_factory=CallReport)
    on_interrupt: Callable[[], object] | None = None
    interruption: VortaError | None = None

    def interrupt(self, error: VortaError) -> None:
        """Ends the call with `error` although its reader does not read. The first interruption counts."""
        if self.interruption is None:
            self.interruption = error
            if self.on_interrupt is not None:
                self.on_interrupt()


def open_call(method: str, metadata: Mapping[str, str | bytes], deadline_s: float | None) -> CallContext:
    """A call that arrives now.

    Args:
        method: Full name.
        metadata: Keys in lower case; values that are not text are left out.
        deadline_s: As in `CallContext`.
    """
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return CallContext(
        method=method,
        request_id=request_id_from(texts),
        start_s=time.monotonic(),
        deadline_s=deadline_s,
        # Until keys are checked, whoever has the key is the tenant.
        tenant=texts.get("authorization", ""),
        metadata=texts,
    )


def request_id_from(metadata: Mapping[str, str]) -> str:
    """The caller's `x-request-id` when it is 1 to 128 visible ASCII characters, else a new one."""
    given = metadata.get("x-request-id", "")
    return given if is_request_id(given) else _new_request_id()


def _new_request_id() -> str:
    if not _new_ids:  # the system is asked for many at once: each question is a call into the kernel
        digits = os.urandom(8 * _IDS_AT_ONCE).hex()
        _new_ids.extend(digits[start : start + 16] for start in range(0, len(digits), 16))
    return _new_ids.pop()


def is_request_id(text: str) -> bool:
    """Whether `text` can be a request id: 1 to 128 visible ASCII characters."""
    return 0 < len(text) <= _MAX_REQUEST_ID_CHARS and all("!" <= char <= "~" for char in text)
