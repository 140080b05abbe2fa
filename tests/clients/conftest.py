"""Fixtures: a fake server, and a proxy before it that cuts connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vorta
from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import FakeServer

FAST = vorta.RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.05, budget_tokens=0)
"""Retries that keep tests quick."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A fake server on a free port."""
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def proxy(server: FakeServer) -> Iterator[CuttingProxy]:
    """A proxy before the server."""
    proxy = CuttingProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client(server: FakeServer) -> Iterator[vorta.Client]:
    """A client of the server."""
    with vorta.Client(server.target, retry=FAST, timeout_s=20) as client:
        yield client


@pytest.fixture
def proxied(proxy: CuttingProxy) -> Iterator[vorta.Client]:
    """A client of the server behind the proxy."""
    with vorta.Client(proxy.target, retry=FAST, timeout_s=20) as client:
        yield client
