"""The client for threads; its asyncio twin is `vorta.async_client`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from vorta import _request, _response
from vorta._call import HEALTH_TIMEOUT_S, closed_client, new_stream_call, resumed_stream_call
from vorta._channel import ChannelConfig, Deadline, Option, Tls
from vorta._method import ADMIN, HEALTH, INFERENCE, Method
from vorta._request import Messages, Prompt, ToolLike
from vorta.result import Generation, HealthStatus, Model, ServerInfo, Tokenization
from vorta.retry import Retrier, RetryPolicy
from vorta.sampling import Sampling
from vorta.stream import Stream
from vorta.v1 import admin_pb2, inference_pb2
from vorta.wire import error_from_rpc

__all__ = ["Client"]


class Client:
    """A connection to a Vorta server. Thread-safe; use it as a context manager or `close` it.

    Every method raises errors of `vorta.errors` and nothing of grpc, and TypeError for a keyword that does not exist.
    Idempotent calls are retried while the server is unavailable; see `RetryPolicy`.

    Args:
        target: The server, as "host:port" or another gRPC target such as "unix:/path".
        api_key: Sent with every call as `authorization: Bearer …`.
        timeout_s: Deadline of each call that names none, retries included. None: no deadline.
        tls: False for plain text, True for TLS with the system's certificates, PEM bytes for certificates of your
            own, or grpc.ChannelCredentials.
        retry: When and how often to retry.
        options: More gRPC channel options.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        tls: Tls = False,
        retry: RetryPolicy | None = None,
        options: Sequence[Option] = (),
    ) -> None:
        self._config = ChannelConfig(
            target=target,
            api_key=api_key,
            timeout_s=timeout_s,
            tls=tls,
            retry=retry or RetryPolicy(),
            options=options,
        )
        self._retrier = Retrier(self._config.retry)
        self._channel = self._config.sync_channel()

    def generate(
        self, prompt: Prompt, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Generation:
        """Continues a prompt, given as text or token ids, and returns when all of the text is there."""
        request = _request.generate_request(inference_pb2.GenerateRequest, prompt, model, sampling, "generate")
        return _response.generation(self._call(INFERENCE["Generate"], request, timeout_s))

    def stream_generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        resume_window_s: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Continues a prompt and returns its events as they happen.

        Args:
            resume_window_s: For how long the request outlives a broken connection, to be resumed. Default 10;
                0 turns resuming off.
        """
        request = _request.generate_request(
            inference_pb2.StreamGenerateRequest, prompt, model, sampling, "stream_generate"
        )
        return self._stream("StreamGenerate", request, resume_window_s, timeout_s)

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolLike] | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Answers a conversation; the result's `message` has the tool calls.

        Args:
            messages: `ChatMessage`s or mappings with their keys, oldest first; a string is one user message.
            tools: `Tool`s or mappings with their keys; OpenAI's nested form is taken too.
            add_generation_prompt: Open the assistant's turn. Default: yes.
            continue_final_message: Continue the last message instead. Default: no.
        """
        options = {
            **sampling,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        request = _request.chat_request(inference_pb2.ChatRequest, messages, tools, model, options, "chat")
        return _response.generation(self._call(INFERENCE["Chat"], request, timeout_s))

    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[ToolLike] | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
        resume_window_s: float | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Answers a conversation and returns the events as they happen; arguments as `chat` and `stream_generate`."""
        options = {
            **sampling,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        request = _request.chat_request(inference_pb2.StreamChatRequest, messages, tools, model, options, "stream_chat")
        return self._stream("StreamChat", request, resume_window_s, timeout_s)

    def resume(self, request_id: str, next_index: int = 0, *, timeout_s: float | None = None) -> Stream:
        """Continues the stream of a running request from an event on; NotFound when its resume window is over."""
        call = resumed_stream_call(self._config, self._retrier, request_id, next_index, timeout_s)
        return Stream(self._channel, call)

    def cancel(self, request_id: str, *, timeout_s: float | None = None) -> None:
        """Cancels a running request; NotFound when there is none of this id."""
        request = _request.simple_request(inference_pb2.CancelGenerateRequest, request_id=request_id)
        self._call(INFERENCE["CancelGenerate"], request, timeout_s)

    def tokenize(
        self,
        text: str | Messages,
        *,
        tools: Sequence[ToolLike] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool | None = None,
        timeout_s: float | None = None,
    ) -> Tokenization:
        """Splits plain text, or a conversation rendered with the chat template, into tokens."""
        options = {"add_special_tokens": add_special_tokens, "add_generation_prompt": add_generation_prompt}
        request = _request.tokenize_request(text, tools, model, options)
        return _response.tokenization(self._call(INFERENCE["Tokenize"], request, timeout_s))

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str | None = None,
        skip_special_tokens: bool | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """Joins token ids to text."""
        request = _request.simple_request(
            inference_pb2.DetokenizeRequest,
            token_ids=token_ids,
            model=model,
            skip_special_tokens=skip_special_tokens,
        )
        text: str = self._call(INFERENCE["Detokenize"], request, timeout_s).text
        return text

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that the server knows, by id."""
        response = self._call(ADMIN["ListModels"], admin_pb2.ListModelsRequest(), timeout_s)
        return [_response.model(entry) for entry in response.models]

    def model(self, model: str, *, timeout_s: float | None = None) -> Model:
        """One model; NotFound when it is unknown."""
        request = _request.simple_request(admin_pb2.GetModelRequest, model=model)
        return _response.model(self._call(ADMIN["GetModel"], request, timeout_s).model)

    def load_model(
        self,
        model: str,
        *,
        source: str | None = None,
        precision: str | None = None,
        max_model_len: int | None = None,
        timeout_s: float | None = None,
    ) -> Model:
        """Loads a model from a path or hub id on the server, and returns when it serves."""
        request = _request.simple_request(
            admin_pb2.LoadModelRequest,
            model=model,
            source=source,
            precision=precision,
            max_model_len=max_model_len,
        )
        return _response.model(self._call(ADMIN["LoadModel"], request, timeout_s).model)

    def unload_model(self, model: str, *, grace_s: float | None = None, timeout_s: float | None = None) -> Model:
        """Stops a model after what it runs has had `grace_s` seconds to finish."""
        request = _request.simple_request(admin_pb2.UnloadModelRequest, model=model, grace_s=grace_s)
        return _response.model(self._call(ADMIN["UnloadModel"], request, timeout_s).model)

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The server's version, limits and state."""
        response = self._call(ADMIN["GetServerInfo"], admin_pb2.GetServerInfoRequest(), timeout_s)
        return _response.server_info(response)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """The state of the server, or of one service, now: never retried. NotFound for an unknown service."""
        method = HEALTH["Check"]
        request = _request.simple_request(method.request_type, service=service)
        return _response.health(self._call(method, request, timeout_s or HEALTH_TIMEOUT_S))

    def close(self) -> None:
        """Closes the connection; calls that run end with Cancelled. Idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.target!r})"

    def _stream(self, method: str, request: Any, resume_window_s: float | None, timeout_s: float | None) -> Stream:
        call = new_stream_call(self._config, self._retrier, method, request, resume_window_s, timeout_s)
        return Stream(self._channel, call)

    def _call(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        deadline = Deadline(self._config.timeout_s if timeout_s is None else timeout_s)
        invoke = self._channel.unary_unary(method.path, method.serialize, method.deserialize)
        num_failures = 0
        while True:
            try:
                response = invoke(request, timeout=deadline.timeout_s, metadata=self._config.metadata)
            except ValueError:
                raise closed_client() from None
            except grpc.RpcError as exc:
                error = error_from_rpc(exc)
                num_failures += 1
                wait_s = (
                    self._retrier.wait_s(error, num_failures, deadline.remaining_s) if method.is_idempotent else None
                )
                if wait_s is None:
                    raise error from exc
                time.sleep(wait_s)
            else:
                self._retrier.count_success()
                return response
