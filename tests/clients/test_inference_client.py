"""The shape that was promised: InferenceClient(api_key, base_url).infer and .async_infer."""

from __future__ import annotations

import asyncio

import pytest

import vorta
from tests.clients.fake_server import FakeServer, text_of
from vorta import errors
from vorta._channel import parse_base_url


@pytest.mark.parametrize("prefix", ["http://", ""])
def test_infer(server: FakeServer, prefix: str) -> None:
    with vorta.InferenceClient(api_key="vk_1", base_url=f"{prefix}{server.target}") as client:
        got = client.infer("What is machine learning?", max_tokens=5)
        assert isinstance(got, vorta.Generation)
        assert got.text == text_of("What is machine learning?", 5)
        assert got.tokens_per_second == 200.0
        assert asyncio.run(client.async_infer("hi")).text == text_of("hi")
        assert asyncio.run(client.async_infer("again, in another loop")).text
    assert server.metadata[0]["authorization"] == "Bearer vk_1"


async def test_async_infer(server: FakeServer) -> None:
    async with vorta.InferenceClient(base_url=server.target) as client:
        first, second = await asyncio.gather(client.async_infer("a"), client.async_infer("b"))
    assert (first.text, second.text) == (text_of("a"), text_of("b"))


@pytest.mark.parametrize(
    ("base_url", "target", "is_secure"),
    [
        ("http://localhost:50051", "localhost:50051", False),
        ("http://localhost:50051/", "localhost:50051", False),
        ("localhost:1234", "localhost:1234", False),
        ("localhost", "localhost:50051", False),
        ("https://api.example.org", "api.example.org:443", True),
        ("https://api.example.org:8443", "api.example.org:8443", True),
        ("http://[::1]:5", "[::1]:5", False),
    ],
)
def test_base_url(base_url: str, target: str, is_secure: bool) -> None:
    assert parse_base_url(base_url) == (target, is_secure)


@pytest.mark.parametrize(
    "base_url",
    ["", "http://", "ftp://host", "http://host/v1", "host:port", "host:99999", "http://host?x=1", "http://["],
)
def test_bad_base_url(base_url: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        vorta.InferenceClient(base_url=base_url)
    assert caught.value.field == "base_url"
