"""The shortest way in: a base URL, a prompt, an answer."""

from __future__ import annotations

import asyncio
import functools
from types import TracebackType
from typing import Self, Unpack

from vorta._channel import parse_base_url
from vorta._request import Prompt
from vorta.async_client import AsyncClient
from vorta.client import Client
from vorta.result import Generation
from vorta.sampling import Sampling

__all__ = ["InferenceClient"]


class InferenceClient:
    """Generates text, from threads with `infer` and from asyncio with `async_infer`.

    Args:
        api_key: Sent with every call.
        base_url: "http://host:port" (port 50051 when absent), "https://host" for TLS (port 443), or "host:port".
        timeout_s: Deadline of each call that names none.

    Raises InvalidArgument naming `base_url` when it cannot be understood.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str = "http://localhost:50051",
        *,
        timeout_s: float | None = None,
    ) -> None:
        target, is_secure = parse_base_url(base_url)
        self._client = Client(target, api_key=api_key, timeout_s=timeout_s, tls=is_secure)
        self._new_async_client = functools.partial(
            AsyncClient, target, api_key=api_key, timeout_s=timeout_s, tls=is_secure
        )
        self._async: tuple[asyncio.AbstractEventLoop, AsyncClient] | None = None

    def infer(
        self, prompt: Prompt, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Generation:
        """Continues a prompt; as `Client.generate`."""
        return self._client.generate(prompt, model=model, timeout_s=timeout_s, **sampling)

    async def async_infer(
        self, prompt: Prompt, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Generation:
        """Continues a prompt; as `AsyncClient.generate`. Connects anew in each event loop."""
        loop = asyncio.get_running_loop()
        if self._async is None or self._async[0] is not loop:
            self._async = (loop, self._new_async_client())
        return await self._async[1].generate(prompt, model=model, timeout_s=timeout_s, **sampling)

    def close(self) -> None:
        """Closes the connection of `infer`. Idempotent."""
        self._client.close()

    async def aclose(self) -> None:
        """Closes both connections. Idempotent."""
        self.close()
        if self._async is not None and self._async[0] is asyncio.get_running_loop():
            await self._async[1].aclose()
        self._async = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
