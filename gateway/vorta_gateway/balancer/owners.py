"""Which endpoint has a request, for calls that are about one: CancelGenerate and ResumeGenerate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message

from vorta_gateway.balancer.demand import Demand
from vorta_gateway.balancer.endpoint import Endpoint
from vorta_gateway.balancer.picker import Lease, Picker
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod

__all__ = ["OwnerRoute", "RequestOwners", "accepted_request_id"]

_NOT_FOUND = 5
_UNAVAILABLE = 14


class RequestOwners:
    """Remembers where the latest requests went.

    Args:
        max_requests: That are remembered.
    """

    def __init__(self, max_requests: int) -> None:
        self._addresses: OrderedDict[str, str] = OrderedDict()
        self._max_requests = max_requests

    def __len__(self) -> int:
        return len(self._addresses)

    def learn(self, request_id: str, address: str) -> None:
        """Notes that the endpoint at an address has a request; an empty id is none."""
        if not request_id:
            return
        self._addresses[request_id] = address
        self._addresses.move_to_end(request_id)
        if len(self._addresses) > self._max_requests:
            self._addresses.popitem(last=False)

    def find(self, request_id: str) -> str | None:
        """The address that a request went to last; None for an unknown one."""
        return self._addresses.get(request_id)


def accepted_request_id(method: RpcMethod, reply: Message | bytes) -> str:
    """The request's id in a stream's `started` event; empty for any other reply."""
    try:
        message: Any = reply if isinstance(reply, Message) else method.response_type.FromString(reply)
    except DecodeError:
        return ""
    return str(message.started.request_id) if message.HasField("started") else ""


class OwnerRoute:
    """The request's endpoint, whatever its health, and then every other one until one does not answer NOT_FOUND.

    Others are asked too when the owner is known: ids are the callers', and may have been used twice.

    Args:
        picker: Counts the calls.
        owner: Known, or None.
        candidates: The endpoints that get calls now.
        demand: Of the call.
    """

    def __init__(self, picker: Picker, owner: Endpoint | None, candidates: Sequence[Endpoint], demand: Demand) -> None:
        self._picker = picker
        self._demand = demand
        known = () if owner is None else (owner,)
        self._order: Iterator[Endpoint] = iter([*known, *(one for one in candidates if one is not owner)])
        self._failure: StatusError | None = None

    def first(self) -> Lease:
        """The first endpoint. Raises StatusError (UNAVAILABLE) if nothing serves."""
        nothing_serves = StatusError(_UNAVAILABLE, "no endpoint of the upstream serves now")
        return self._take_next(nothing_serves)

    async def next(self, failure: StatusError, *, is_repeatable: bool) -> Lease:
        """The next endpoint. Raises StatusError: the failure, or that of the endpoint that could not be asked, because
        it may be the one that has the request.
        """
        if not is_repeatable or failure.code not in (_NOT_FOUND, _UNAVAILABLE):
            raise failure
        if self._failure is None or failure.code == _UNAVAILABLE:
            self._failure = failure
        return self._take_next(self._failure)

    def close(self) -> None:
        """Nothing is held."""

    def _take_next(self, otherwise: StatusError) -> Lease:
        endpoint = next(self._order, None)
        if endpoint is None:
            raise otherwise
        return self._picker.take(endpoint, self._demand)
