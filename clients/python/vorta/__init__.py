"""Vorta's client: text generation over gRPC, for threads and for asyncio.

    import vorta

    with vorta.Client("localhost:50051") as client:
        print(client.generate("What is machine learning?", max_tokens=100).text)
        with client.stream_chat("Tell me a story.") as stream:
            for event in stream:
                print(event.text, end="")

Errors are those of `vorta.errors`. Each public name is loaded on its first use, and loads grpc and protobuf and
nothing heavier: the server's engine imports `vorta.errors` and stays free of grpc.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vorta import errors
from vorta.errors import VortaError

if TYPE_CHECKING:
    from vorta.async_client import AsyncClient
    from vorta.async_stream import AsyncStream
    from vorta.client import Client
    from vorta.inference_client import InferenceClient
    from vorta.result import (
        ChatMessage,
        Delta,
        Event,
        Finished,
        FinishReason,
        Generation,
        HealthStatus,
        Model,
        ModelKind,
        ModelLoad,
        ModelState,
        RequestError,
        SequenceOutput,
        ServerInfo,
        Started,
        StopMatch,
        Timings,
        TokenAlternative,
        Tokenization,
        TokenLogprob,
        Tool,
        ToolCall,
        Usage,
    )
    from vorta.retry import RetryPolicy
    from vorta.sampling import Sampling
    from vorta.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "ChatMessage",
    "Client",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "HealthStatus",
    "InferenceClient",
    "Model",
    "ModelKind",
    "ModelLoad",
    "ModelState",
    "RequestError",
    "RetryPolicy",
    "Sampling",
    "SequenceOutput",
    "ServerInfo",
    "Started",
    "StopMatch",
    "Stream",
    "Timings",
    "TokenAlternative",
    "TokenLogprob",
    "Tokenization",
    "Tool",
    "ToolCall",
    "Usage",
    "VortaError",
    "__version__",
    "errors",
]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncStream": "async_stream",
    "Client": "client",
    "InferenceClient": "inference_client",
    "RetryPolicy": "retry",
    "Sampling": "sampling",
    "Stream": "stream",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"vorta.{_HOMES.get(name, 'result')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
