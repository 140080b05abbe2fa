"""A real gRPC server on a free port, before a scripted worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.front.stack import Stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Server, scripted worker and a client, started."""
    async with Stack(tmp_path) as running:
        yield running
