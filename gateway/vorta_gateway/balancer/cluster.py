"""The endpoints that calls are spread over, as they come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc

from vorta.errors import Unavailable
from vorta_gateway.balancer.config import BalancerConfig
from vorta_gateway.balancer.endpoint import Endpoint, Health
from vorta_gateway.balancer.health import HealthWatch
from vorta_gateway.balancer.targets import DnsName, Resolver, Targets, join_host_port
from vorta_gateway.channel import ChannelUpstream, make_channel
from vorta_gateway.fast import FastUpstream
from vorta_gateway.upstream import Upstream

__all__ = ["Cluster"]

logger = logging.getLogger(__name__)

Connect = Callable[[str], grpc.aio.Channel]


class Cluster:
    """Keeps one channel and one health watch for each endpoint.

    Args:
        targets: The endpoints, or the name that they are addresses of.
        config: Of health, the resolver and affinity's memory.
        resolver: Asked for the name.
        connect: Makes the channel to an address; None for one without TLS, with a faster way beside it.

    Attributes:
        endpoints: Those that may get new calls, in the order of the targets, or sorted by address.
            A new tuple whenever they change.
    """

    def __init__(self, targets: Targets, config: BalancerConfig, resolver: Resolver, connect: Connect | None) -> None:
        self._targets = targets
        self._config = config
        self._resolver = resolver
        self._connect = connect
        self._members: dict[str, _Member] = {}
        self._leaving: dict[asyncio.Task[None], Endpoint] = {}
        self._resolving: asyncio.Task[None] | None = None
        self._is_lost = asyncio.Event()
        self._changed = asyncio.Event()
        self.endpoints: tuple[Endpoint, ...] = ()

    async def start(self) -> None:
        """Resolves and begins to connect. Raises Unavailable if the name has no address."""
        if isinstance(self._targets, DnsName):
            self._update(await self._resolve(self._targets))
            self._resolving = asyncio.create_task(self._follow_name(self._targets))
        else:
            self._update(tuple(dict.fromkeys(self._targets)))

    async def wait_serving(self, timeout_s: float) -> bool:
        """Waits until an endpoint serves, at most so many seconds. Returns whether one does."""
        try:
            async with asyncio.timeout(timeout_s):
                while not any(one.health is Health.SERVING for one in self.endpoints):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def channel(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """The channel to one of the endpoints."""
        return self._members[endpoint.address].channel

    def find(self, address: str) -> Endpoint | None:
        """The endpoint of an address, also one that left and still has calls; None if there is none."""
        member = self._members.get(address)
        if member is not None:
            return member.endpoint
        leaving = (one for one in self._leaving.values() if one.address == address and one.in_flight)
        return next(leaving, None)

    async def close(self) -> None:
        """Closes every channel; calls that are open end. Idempotent."""
        tasks = [*self._leaving]
        if self._resolving is not None:
            tasks.append(self._resolving)
        for task in tasks:
            task.cancel()
        members, self._members = list(self._members.values()), {}
        self.endpoints = ()
        await asyncio.gather(*tasks, *(member.close() for member in members), return_exceptions=True)

    async def _follow_name(self, name: DnsName) -> None:
        config = self._config.resolver
        while True:
            await asyncio.sleep(config.min_interval_s)
            try:
                async with asyncio.timeout(config.interval_s - config.min_interval_s):
                    await self._is_lost.wait()
            except TimeoutError:
                pass
            self._is_lost.clear()
            try:
                self._update(await self._resolve(name))
            except Unavailable as error:
                # Better the endpoints of before than none.
                logger.warning("%s", error.message)

    async def _resolve(self, name: DnsName) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._config.resolver.timeout_s):
                hosts = await self._resolver.resolve(name.name)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            raise _unresolved(name, str(error) or type(error).__name__) from None
        if not hosts:
            raise _unresolved(name, "it has no address")
        # Sorted, because name servers shuffle, and equal lists must stay equal.
        addresses = sorted({join_host_port(host, name.port) for host in hosts})
        return addresses[: self._config.resolver.max_endpoints]

    def _update(self, addresses: Sequence[str]) -> None:
        for address in self._members.keys() - set(addresses):
            member = self._members.pop(address)
            member.endpoint.has_left = True
            task = asyncio.create_task(member.leave())
            self._leaving[task] = member.endpoint
            task.add_done_callback(self._leaving.pop)
        for address in addresses:
            if address not in self._members:
                self._members[address] = _Member(address, self._connect, self._config, self._on_health)
        before = {one.address for one in self.endpoints}
        self.endpoints = tuple(self._members[address].endpoint for address in addresses)
        after = {one.address for one in self.endpoints}
        if before != after:
            logger.info("endpoints: %d came, %d left", len(after - before), len(before - after))

    def _on_health(self, endpoint: Endpoint, health: Health) -> None:
        if endpoint.health is health or endpoint.has_left:
            return
        logger.info("endpoint %s is %s", endpoint.address, health.value)
        if health is Health.CONNECTING:
            self._is_lost.set()
        elif health is Health.SERVING:
            endpoint.ejections.lift()
        endpoint.health = health
        self._changed.set()


class _Member:
    """An endpoint with what it is made of."""

    def __init__(
        self,
        address: str,
        connect: Connect | None,
        config: BalancerConfig,
        on_health: Callable[[Endpoint, Health], None],
    ) -> None:
        self.channel = make_channel(address, config.channel) if connect is None else connect(address)
        upstream: Upstream = (
            FastUpstream(address, self.channel, config.channel) if connect is None else ChannelUpstream(self.channel)
        )
        self.endpoint = Endpoint(address, upstream, max_blocks=config.affinity.max_endpoint_blocks)
        watch = HealthWatch(self.channel, config.health, lambda health: on_health(self.endpoint, health))
        self._watching = asyncio.create_task(watch.run())
        self._watching.add_done_callback(_log_failure)

    async def leave(self) -> None:
        """Closes when the calls that are open have ended, or at once when cancelled."""
        try:
            self._watching.cancel()
            await self.endpoint.wait_idle()
        finally:
            await self.close()

    async def close(self) -> None:
        self._watching.cancel()
        await asyncio.wait([self._watching])
        await self.endpoint.upstream.close()


def _unresolved(name: DnsName, why: str) -> Unavailable:
    return Unavailable(f"{name.name} cannot be resolved: {why}", reason="CONNECTION_FAILED", retry_delay_s=1.0)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a health watch failed", exc_info=task.exception())
