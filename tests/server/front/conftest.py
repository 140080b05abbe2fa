"""A real gRPC server on a free port, before a scripted worker."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stack import Stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Server, scripted worker and a channel to the server."""
    async with Stack(tmp_path) as running:
        yield running


@pytest.fixture
def channel(stack: Stack) -> grpc.aio.Channel:
    """A client's channel to the server."""
    return stack.client
