"""Replicas, and over what calls to them go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.gateway.balancer import balanced
from tests.gateway.balancer.replicas import Replica


@pytest.fixture(params=["channel", "fast"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test once over either way."""
    monkeypatch.setattr(balanced, "way", request.param)


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        made = [await Replica(name).start() for name in "abc"]
        for replica in made:
            stack.push_async_callback(replica.kill)
        yield made
        for replica in made:
            replica.gate.set()
