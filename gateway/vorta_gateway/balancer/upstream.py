"""An upstream over several endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing, closing
from typing import Protocol

import grpc
from google.protobuf.message import Message

from vorta_gateway.balancer.affinity import AffinityKey, VortaAffinityKey
from vorta_gateway.balancer.cluster import Cluster, Connect
from vorta_gateway.balancer.config import BalancerConfig
from vorta_gateway.balancer.demand import Demand, DemandReader, accepts_first, is_by_request_id
from vorta_gateway.balancer.endpoint import Endpoint
from vorta_gateway.balancer.outliers import OutlierDetector
from vorta_gateway.balancer.owners import OwnerRoute, RequestOwners, accepted_request_id
from vorta_gateway.balancer.picker import Lease, Picker
from vorta_gateway.balancer.replay import ReplayableRequests
from vorta_gateway.balancer.retries import BalancedRoute, RetryBudget, RoutePlanner, is_about_endpoint
from vorta_gateway.balancer.stats import BalancerStats, EndpointStats
from vorta_gateway.balancer.targets import Resolver, SystemResolver, Targets, parse_targets
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import Idempotency, UpstreamCall

__all__ = ["BalancedUpstream"]

_CANCELLED = 1
_DEADLINE_EXCEEDED = 4
_UNAVAILABLE = 14

# A grounded answer's hits, then the event that tells the request's id.
_MAX_EVENTS_TO_ACCEPTANCE = 2


class Route(Protocol):
    """The endpoints that a call is sent to, one after the other; see `BalancedRoute`."""

    def first(self) -> Lease: ...

    async def next(self, failure: StatusError, *, is_repeatable: bool) -> Lease: ...

    def close(self) -> None: ...


class BalancedUpstream:
    """An `Upstream` that sends each call to the endpoint that is best for it, and again where that may be done.

    One event loop only.

    Args:
        targets: See `parse_targets`.
        config: Of everything below.
        resolver: Asked for a dns:/// target; default: the operating system's.
        affinity: Finds prompts in requests; default: in those of vorta.v1.
        connect: Makes the channel to "host:port"; default: without TLS, by `config.channel`.

    Raises:
        InvalidArgument: The targets are malformed.
    """

    def __init__(
        self,
        targets: str | Targets,
        config: BalancerConfig | None = None,
        *,
        resolver: Resolver | None = None,
        affinity: AffinityKey | None = None,
        connect: Connect | None = None,
    ) -> None:
        config = config or BalancerConfig()
        self._retry = config.retry
        self._cluster = Cluster(
            parse_targets(targets) if isinstance(targets, str) else targets,
            config,
            resolver or SystemResolver(),
            connect,
        )
        self._outliers = OutlierDetector(config.outlier)
        self._picker = Picker(config.affinity, self._outliers)
        self._budget = RetryBudget(config.retry, lambda: self._num_open)
        self._planner = RoutePlanner(self._cluster, self._picker, self._budget, config.retry)
        self._demands = DemandReader(config.affinity, affinity or VortaAffinityKey())
        self._owners = RequestOwners(config.max_request_ids)
        self._num_open = 0

    async def start(self) -> None:
        """Resolves the targets and begins to connect. Raises Unavailable if a name cannot be resolved."""
        await self._cluster.start()

    async def wait_serving(self, timeout_s: float) -> bool:
        """Waits until an endpoint serves, at most so many seconds. Returns whether one does."""
        return await self._cluster.wait_serving(timeout_s)

    def channel(self) -> grpc.aio.Channel:
        """The channel of an endpoint that gets calls now, for what is no call of an RPC, such as reflection.

        Raises:
            StatusError: UNAVAILABLE: none does.
        """
        candidates = self._picker.candidates(self._cluster.endpoints)
        if not candidates:
            raise StatusError(_UNAVAILABLE, "no endpoint of the upstream serves now")
        return self._cluster.channel(candidates[0])

    async def unary(self, call: UpstreamCall, request: Message | bytes) -> Message | bytes:
        """See `Upstream`."""
        demand = self._demands.read(call, request, is_choice=len(self._cluster.endpoints) > 1)
        self._num_open += 1
        try:
            if is_by_request_id(call.method):
                return await self._unary(call, request, demand, self._route_to_owner(demand))
            if self._retry.hedge_after_s is not None and call.method.idempotency is not Idempotency.UNKNOWN:
                return await self._hedged(call, request, demand, self._retry.hedge_after_s)
            return await self._unary(call, request, demand, self._route(call, demand, []))
        finally:
            self._num_open -= 1

    async def stream(
        self, call: UpstreamCall, requests: Message | bytes | AsyncIterable[Message | bytes]
    ) -> AsyncGenerator[Message | bytes, None]:
        """See `Upstream`."""
        demand = self._demands.read(call, requests, is_choice=len(self._cluster.endpoints) > 1)
        route: Route = self._route_to_owner(demand) if is_by_request_id(call.method) else self._route(call, demand, [])
        # What is sent: the one request, or the caller's many.
        many = None if isinstance(requests, Message | bytes) else self._replayable(requests)
        sent = requests if many is None else many
        num_replies = 0
        self._num_open += 1
        try:
            with closing(route):
                lease = route.first()
                while True:
                    attempt = self._begin(call, demand, lease)
                    try:
                        async with aclosing(lease.endpoint.upstream.stream(attempt.call, sent)) as replies:
                            async for reply in replies:
                                attempt.answered()
                                num_replies += 1
                                if num_replies <= _MAX_EVENTS_TO_ACCEPTANCE:
                                    self._learn_from(reply, call, demand, lease)
                                if many is not None:
                                    many.forget()
                                yield reply
                        attempt.answered()
                        return
                    except StatusError as error:
                        if many is not None and many.error is error:
                            raise  # the caller's, not the endpoint's
                        attempt.failed(error)
                        failure = error
                    finally:
                        attempt.end()
                    is_repeatable = num_replies == 0 and (many is None or many.is_replayable)
                    lease = await route.next(failure, is_repeatable=is_repeatable)
        finally:
            self._num_open -= 1
            if many is not None:
                await many.close()

    def stats(self) -> BalancerStats:
        """What has happened so far."""
        return BalancerStats(
            endpoints=tuple(self._endpoint_stats(one) for one in self._cluster.endpoints),
            num_open=self._num_open,
            num_retries=self._budget.num_retries,
            num_hedges=self._budget.num_hedges,
            num_budget_refusals=self._budget.num_refused,
            num_affinity_overridden=self._picker.num_overridden,
        )

    async def close(self) -> None:
        """Closes every channel; calls that are open end with UNAVAILABLE."""
        await self._cluster.close()

    async def _unary(
        self, call: UpstreamCall, request: Message | bytes, demand: Demand, route: Route
    ) -> Message | bytes:
        with closing(route):
            lease = route.first()
            while True:
                attempt = self._begin(call, demand, lease)
                try:
                    reply = await lease.endpoint.upstream.unary(attempt.call, request)
                    attempt.answered()
                    return reply
                except StatusError as error:
                    attempt.failed(error)
                    failure = error
                finally:
                    attempt.end()
                lease = await route.next(failure, is_repeatable=True)

    async def _hedged(
        self, call: UpstreamCall, request: Message | bytes, demand: Demand, hedge_after_s: float
    ) -> Message | bytes:
        """The first good reply of two attempts, the second of which begins when the first is slow."""
        tried: list[Endpoint] = []
        tasks: dict[asyncio.Task[Message | bytes], UpstreamCall] = {}

        def begin(max_attempts: int) -> None:
            own = _copy(call)
            route = self._route(own, demand, tried, max_attempts)
            tasks[asyncio.create_task(self._unary(own, request, demand, route))] = own

        has_budget = False
        try:
            begin(self._retry.max_attempts)
            done, _ = await asyncio.wait(tasks, timeout=hedge_after_s)
            others = [one for one in self._picker.candidates(self._cluster.endpoints) if one not in tried]
            if not done and others and self._budget.take():
                has_budget = True
                self._budget.num_hedges += 1
                begin(1)
            while True:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                task = next(one for one in tasks if one.done())
                own = tasks.pop(task)
                error = task.exception()
                if error is None or not tasks or not isinstance(error, StatusError) or error.code != _UNAVAILABLE:
                    call.header, call.trailers = own.header, own.trailers
                    return task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if has_budget:
                self._budget.give_back()

    def _replayable(self, requests: AsyncIterable[Message | bytes]) -> ReplayableRequests:
        return ReplayableRequests(requests, self._retry.max_buffer_bytes)

    def _route(
        self, call: UpstreamCall, demand: Demand, tried: list[Endpoint], max_attempts: int | None = None
    ) -> BalancedRoute:
        return BalancedRoute(
            self._planner, call, demand, tried=tried, max_attempts=max_attempts or self._retry.max_attempts
        )

    def _route_to_owner(self, demand: Demand) -> OwnerRoute:
        address = self._owners.find(demand.request_id)
        owner = self._cluster.find(address) if address is not None else None
        return OwnerRoute(self._picker, owner, self._picker.candidates(self._cluster.endpoints), demand)

    def _begin(self, call: UpstreamCall, demand: Demand, lease: Lease) -> _Attempt:
        if not is_by_request_id(call.method):
            self._owners.learn(demand.request_id, lease.endpoint.address)
        return _Attempt(call, lease, self._outliers, self._cluster)

    def _learn_from(self, reply: Message | bytes, call: UpstreamCall, demand: Demand, lease: Lease) -> None:
        """Notes which request it is, where one of the first replies of a stream tells."""
        if accepts_first(call.method):
            self._owners.learn(accepted_request_id(call.method, reply), lease.endpoint.address)
        elif is_by_request_id(call.method):
            self._owners.learn(demand.request_id, lease.endpoint.address)

    def _endpoint_stats(self, endpoint: Endpoint) -> EndpointStats:
        return EndpointStats(
            address=endpoint.address,
            state="EJECTED" if self._outliers.is_ejected(endpoint) else endpoint.health.value,
            in_flight=endpoint.in_flight,
            work=endpoint.work,
            num_picks=endpoint.num_picks,
            num_affinity_hits=endpoint.num_affinity_hits,
            num_failures=endpoint.num_failures,
            num_ejections=endpoint.ejections.total,
            num_blocks=len(endpoint.prefixes),
        )


class _Attempt:
    """A call on its way to one endpoint, with metadata of its own until it is the one that counts."""

    def __init__(self, call: UpstreamCall, lease: Lease, outliers: OutlierDetector, cluster: Cluster) -> None:
        self.call = _copy(call)
        self._original = call
        self._lease = lease
        self._outliers = outliers
        self._cluster = cluster

    def answered(self) -> None:
        """A reply came, or the end of them."""
        self._outliers.succeeded(self._lease.endpoint)
        self._original.header, self._original.trailers = self.call.header, self.call.trailers

    def failed(self, error: StatusError) -> None:
        """The endpoint answered with an error, or was not reached."""
        self._original.header = self.call.header
        if is_about_endpoint(error):
            self._outliers.failed(self._lease.endpoint, self._cluster.endpoints)
        elif error.code not in (_CANCELLED, _DEADLINE_EXCEEDED, _UNAVAILABLE):
            # gRPC may say the first two without having heard of the endpoint.
            self._outliers.succeeded(self._lease.endpoint)

    def end(self) -> None:
        """It is over, however it ended."""
        self._lease.release()


def _copy(call: UpstreamCall) -> UpstreamCall:
    return UpstreamCall(method=call.method, metadata=call.metadata, deadline_s=call.deadline_s)
