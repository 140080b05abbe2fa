"""What a call asks of the endpoint that gets it: how much work, where it has been done before, under which id."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from vorta_gateway.balancer.affinity import AffinityKey, Prompt, hash_blocks
from vorta_gateway.balancer.config import AffinityConfig
from vorta_gateway.upstream import RpcMethod, UpstreamCall

__all__ = ["Demand", "DemandReader", "accepts_first", "is_by_request_id"]

_SERVICE = "/vorta.v1.InferenceService/"
_BY_REQUEST_ID = frozenset(_SERVICE + name for name in ("CancelGenerate", "ResumeGenerate"))
_ACCEPTS_FIRST = frozenset(_SERVICE + name for name in ("StreamGenerate", "StreamChat", "StreamAnswer"))
_HAS_REQUEST_ID = _BY_REQUEST_ID | _ACCEPTS_FIRST | {_SERVICE + "Generate", _SERVICE + "Chat"}

# Work is counted in tokens to decode, roughly. A prefilled token is cheaper by an order of magnitude, and nobody who
# leaves max_tokens out, or sets it to the context's length, means to read so much.
_CALL_WORK = 8.0
_CHARACTERS_PER_TOKEN = 4.0
_PREFILL_SHARE = 0.1
_DEFAULT_MAX_TOKENS = 256
_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One call's.

    Attributes:
        work: In tokens to decode, without the prompt.
        prompt_work: That of the prompt, if none of it is cached.
        chain: See `hash_blocks`; empty for no affinity.
        request_id: The caller's id of the request, or empty.
    """

    work: float
    prompt_work: float = 0.0
    chain: tuple[int, ...] = ()
    request_id: str = ""


def is_by_request_id(method: RpcMethod) -> bool:
    """Whether a method is about a request that one endpoint has."""
    return method.path in _BY_REQUEST_ID


def accepts_first(method: RpcMethod) -> bool:
    """Whether a stream begins with telling that the request was accepted, under which id: before, nothing has run."""
    return method.path in _ACCEPTS_FIRST


class DemandReader:
    """Reads demands from requests.

    Args:
        config: Of affinity.
        key: Finds prompts.
    """

    def __init__(self, config: AffinityConfig, key: AffinityKey) -> None:
        self._config = config
        self._key = key

    def read(
        self,
        call: UpstreamCall,
        request: Message | bytes | AsyncIterable[Message | bytes],
        *,
        is_choice: bool = True,
    ) -> Demand:
        """The demand of a call; of many requests, or of one that is malformed, what can be told without.

        Where there is one endpoint only, and so no choice, its prompt is not looked at.
        """
        method = call.method
        is_prompted = is_choice and self._key.is_prompted(method)
        has_request_id = method.path in _HAS_REQUEST_ID
        message = None
        if is_prompted or has_request_id:
            message = _parsed(method, request)
        request_id = _request_id(call, message) if has_request_id else ""
        prompt = self._key.prompt(method, message) if is_prompted and message is not None else None
        if prompt is None:
            return Demand(work=_CALL_WORK, prompt_work=_num_bytes(request) * _prefill(1), request_id=request_id)
        return Demand(
            work=_CALL_WORK + _num_tokens(prompt),
            prompt_work=_prefill(len(prompt.text)),
            chain=hash_blocks(
                prompt, block_characters=self._config.block_characters, max_blocks=self._config.max_blocks
            ),
            request_id=request_id,
        )


def _parsed(method: RpcMethod, request: Any) -> Message | None:
    if isinstance(request, Message):
        return request
    if not isinstance(request, bytes):
        return None
    try:
        return method.request_type.FromString(request)
    except DecodeError:
        return None  # the endpoint says what is wrong with it


def _request_id(call: UpstreamCall, message: Any) -> str:
    given = getattr(message, "request_id", "") or call.metadata.get("x-request-id", "")
    return given if isinstance(given, str) and len(given) <= 128 else ""


def _num_bytes(request: Any) -> int:
    if isinstance(request, bytes):
        return len(request)
    return request.ByteSize() if isinstance(request, Message) else 0


def _num_tokens(prompt: Prompt) -> int:
    return _DEFAULT_MAX_TOKENS if prompt.max_tokens is None else min(max(0, prompt.max_tokens), _MAX_TOKENS)


def _prefill(num_characters: int) -> float:
    return num_characters / _CHARACTERS_PER_TOKEN * _PREFILL_SHARE
