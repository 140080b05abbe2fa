"""Fixtures: a fake server, and a proxy before it that cuts connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import FakeServer


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
