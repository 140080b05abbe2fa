"""The contract of vector operations, on every backend there is.

Against a live Weaviate: set WEAVIATE_URL (weaviate://host:port/grpc_port) and, if need be, WEAVIATE_API_KEY. The
collections made there have names that begin with "vorta-contract-" and are deleted afterwards.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.vectors.contract import CHECKS, FILTERS
from tests.server.vectors.driver import QUERIES, Driver, filled
from vorta.errors import NotFound, VortaError
from vorta_server.vectors.operation import DeleteCollection, ListCollections, Search

BACKENDS = ["weaviate-fake", "faiss", "tiered-fakes", "tiered-faiss", "weaviate-live"]


@contextlib.contextmanager
def open_backend(kind: str, folder: Path) -> Iterator[Any]:
    """A backend of a kind, closed afterwards."""
    with contextlib.ExitStack() as stack:
        backend = _opened(kind, folder, stack)
        stack.callback(backend.close)
        yield backend


def _opened(kind: str, folder: Path, stack: contextlib.ExitStack) -> Any:
    if kind == "faiss":
        if importlib.util.find_spec("vorta_server.vectors.faiss_backend") is None:
            pytest.skip("there is no FAISS backend yet")
        from vorta_server.vectors.faiss_backend import FaissBackend

        return FaissBackend(folder)
    if kind.startswith("tiered"):
        from vorta_server.vectors.tiered_backend import TieredBackend

        hot = "faiss" if kind == "tiered-faiss" else "weaviate-fake"
        return TieredBackend(_opened("weaviate-fake", folder, stack), _opened(hot, folder, stack))
    pytest.importorskip("weaviate", reason='needs the extra "weaviate"')
    from vorta_server.vectors.weaviate_backend import WeaviateBackend
    from vorta_server.vectors.weaviate_config import parse_weaviate_url

    if kind == "weaviate-live":
        url = os.environ.get("WEAVIATE_URL")
        if not url:
            pytest.skip("NOT RUN against a real Weaviate: WEAVIATE_URL is not set")
        return WeaviateBackend(parse_weaviate_url(url, api_key=os.environ.get("WEAVIATE_API_KEY", "")))
    from tests.server.vectors.fake_weaviate.server import FakeWeaviate

    return WeaviateBackend(parse_weaviate_url(stack.enter_context(FakeWeaviate()).url))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", BACKENDS)
def test_contract(kind: str, check: str, tmp_path: Path) -> None:
    with open_backend(kind, tmp_path) as backend:
        driver = Driver(backend)
        name = f"vorta-contract-{uuid.uuid4().hex[:8]}"
        try:
            CHECKS[check](driver, name)
        finally:
            if kind == "weaviate-live":
                _clean(driver, name)


@pytest.mark.parametrize("kind", ["tiered-fakes", "tiered-faiss"])
def test_a_copy_answers_as_the_truth_does(kind: str, tmp_path: Path) -> None:
    with open_backend(kind, tmp_path) as backend:
        driver = Driver(backend)
        filled(driver, "c")
        end_s = time.monotonic() + 60
        while backend.ready_collections != ["c"]:
            backend.step()
            time.sleep(0.001)
            assert time.monotonic() < end_s
        for index, (filter_, _) in enumerate(FILTERS):
            search = Search(collection="c", vectors=QUERIES[index % 5].tobytes(), filter=filter_, limit=100)
            from_copy = driver.ids(search)
            assert from_copy == Driver(backend._truth).ids(search), filter_
        assert backend.counters.hot_answers == len(FILTERS)
        assert backend.counters.hot_failures == 0


def _clean(driver: Driver, name: str) -> None:
    for info in driver.ask(ListCollections()).collections:
        if name in info.collection.name:
            with contextlib.suppress(NotFound, VortaError):
                driver.ask(DeleteCollection(collection=info.collection.name))
