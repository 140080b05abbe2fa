"""A server with a scripted model: the generated servicers over grpc's thread server.

Every request of prompt P is answered by the same tokens, whatever the connection does. Streams write an event log first
and send it from there, so that ResumeGenerate can continue it. `fail_next` makes the next calls of a method fail;
`on_event` runs before an event is sent.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.clients.fake_vectors import FakeEmbeddings, FakeVectors, answer_events
from vorta import errors, wire
from vorta.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    embedding_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    vector_pb2,
    vector_pb2_grpc,
)

NUM_TOKENS = 12


def tokens_of(prompt: str, num_tokens: int) -> list[tuple[int, str]]:
    """What the model answers: ids and texts."""
    return [(len(prompt) * 100 + place, f" {prompt[:8]}{place}") for place in range(num_tokens)]


def text_of(prompt: str, num_tokens: int = NUM_TOKENS) -> str:
    """The whole answer."""
    return "".join(text for _, text in tokens_of(prompt, num_tokens))


def abort(context: grpc.ServicerContext, error: errors.VortaError) -> None:
    """Ends the call with the error as the wire format has it."""
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    context.set_trailing_metadata(((wire.DETAILS_KEY, wire.status_details(error)),))
    context.abort(code, wire.status_message(error))


class FakeServer(
    inference_pb2_grpc.InferenceServiceServicer,
    admin_pb2_grpc.AdminServiceServicer,
):
    """See the module."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.calls: dict[str, list[Any]] = defaultdict(list)
        self.metadata: list[dict[str, Any]] = []
        self.on_event: Callable[[str, int], None] = lambda request_id, index: None
        self.block = threading.Event()
        """Calls of a prompt that begins with "block" wait for it."""
        self.cancelled: dict[str, threading.Event] = defaultdict(threading.Event)
        self.logs: dict[str, list[dict[str, Any]]] = {}
        self.merge = 1
        """Tokens in one delta; its index is the last one's."""
        self.finish_reason = common_pb2.FINISH_REASON_STOP
        self.stream_error: common_pb2.RequestError | None = None
        self.answer_length: int | None = None
        """StreamAnswer sends only so many events."""
        self.forget = False
        """ResumeGenerate knows no request."""
        self._failures: dict[str, list[errors.VortaError]] = defaultdict(list)
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.embeddings = FakeEmbeddings(self._enter, abort)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(self.embeddings, self._server)
        self.vectors = FakeVectors(self._enter, abort)
        vector_pb2_grpc.add_VectorServiceServicer_to_server(self.vectors, self._server)
        self.health = health.HealthServicer()
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.health.set("sick", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("localhost:0")
        else:
            self.port = self._server.add_secure_port("localhost:0", credentials)
        self._server.start()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    def close(self) -> None:
        self.block.set()
        for event in self.cancelled.values():
            event.set()
        self._server.stop(None).wait()

    def fail_next(self, method: str, *failures: errors.VortaError) -> None:
        self._failures[method].extend(failures)

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Generate", request, context)
        if request.prompt.startswith("block"):
            self.block.wait(20)
        if request.HasField("prompt") and not request.prompt:
            abort(context, errors.InvalidArgument("prompt is empty", reason="MISSING_FIELD", field="prompt"))
        tokens = tokens_of(request.prompt, request.max_tokens or NUM_TOKENS)
        return inference_pb2.GenerateResponse(**self._answer(request, tokens))

    def Chat(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Chat", request, context)
        prompt = request.messages[-1].content
        answer = self._answer(request, tokens_of(prompt, request.max_tokens or NUM_TOKENS))
        return inference_pb2.ChatResponse(**answer, message=assistant_message(request, answer["text"]))

    def StreamGenerate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._enter("StreamGenerate", request, context)
        self._write_log(request, request.prompt)
        yield from self._send(request.request_id, 0, inference_pb2.StreamGenerateResponse, context)

    def StreamChat(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._enter("StreamChat", request, context)
        self._write_log(request, request.messages[-1].content)
        yield from self._send(request.request_id, 0, inference_pb2.StreamChatResponse, context)

    def ResumeGenerate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._enter("ResumeGenerate", request, context)
        if request.request_id not in self.logs or self.forget:
            abort(context, errors.NotFound("no such request", reason="REQUEST_NOT_FOUND"))
        yield from self._send(request.request_id, request.next_index, inference_pb2.ResumeGenerateResponse, context)

    def CancelGenerate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("CancelGenerate", request, context)
        if request.request_id not in self.logs:
            abort(context, errors.NotFound("no such request", reason="REQUEST_NOT_FOUND"))
        self.cancelled[request.request_id].set()
        return inference_pb2.CancelGenerateResponse()

    def StreamAnswer(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._enter("StreamAnswer", request, context)
        self.logs[request.request_id] = []
        hit = vector_pb2.Hit(id="p1", score=0.5)
        hit.payload.update({"text": "the sun", "year": 2020})
        for event in answer_events(request, [hit])[: self.answer_length]:
            self.on_event(request.request_id, event.index)
            if not context.is_active():
                return
            if event.HasField("finished"):
                event.finished.result.finish_reason = self.finish_reason
                if self.stream_error is not None:
                    event.finished.result.error.CopyFrom(self.stream_error)
            if self.cancelled[request.request_id].is_set():
                result = common_pb2.StreamFinished(finish_reason=common_pb2.FINISH_REASON_CANCELLED)
                finished = inference_pb2.AnswerFinished(result=result)
                yield inference_pb2.StreamAnswerResponse(index=event.index, finished=finished)
                return
            yield event

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Tokenize", request, context)
        text = request.text or "".join(message.content for message in request.messages)
        return inference_pb2.TokenizeResponse(
            token_ids=[ord(character) for character in text], tokens=list(text), count=len(text), max_model_len=99
        )

    def Detokenize(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Detokenize", request, context)
        return inference_pb2.DetokenizeResponse(text="".join(chr(token) for token in request.token_ids))

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ListModels", request, context)
        return admin_pb2.ListModelsResponse(models=[model("tiny")])

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("GetModel", request, context)
        if request.model != "tiny":
            abort(context, errors.NotFound(f"no model {request.model}", metadata={"model": request.model}))
        return admin_pb2.GetModelResponse(model=model(request.model))

    def LoadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("LoadModel", request, context)
        return admin_pb2.LoadModelResponse(model=model(request.model, source=request.source))

    def UnloadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("UnloadModel", request, context)
        return admin_pb2.UnloadModelResponse(model=model(request.model, state=admin_pb2.MODEL_STATE_UNLOADED))

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("GetServerInfo", request, context)
        response = admin_pb2.GetServerInfoResponse(
            version="0.1.0", default_model="tiny", max_message_bytes=1024, services=["vorta.v1.AdminService"]
        )
        response.start_time.FromSeconds(1_700_000_000)
        return response

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.calls[method].append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self._failures[method]:
            abort(context, self._failures[method].pop(0))

    def _answer(self, request: Any, tokens: list[tuple[int, str]]) -> dict[str, Any]:
        return {
            "request_id": request.request_id or "made-by-server",
            "model": request.model or "tiny",
            "text": "".join(text for _, text in tokens),
            "token_ids": [token for token, _ in tokens],
            "tokens_per_second": 200.0,
            "finish_reason": common_pb2.FINISH_REASON_STOP,
            "stop_match": common_pb2.StopMatch(token_id=2),
            "usage": common_pb2.Usage(prompt_tokens=3, completion_tokens=len(tokens), total_tokens=3 + len(tokens)),
            "timings": common_pb2.Timings(ttft_s=0.01, total_s=0.1, tokens_per_second=200.0),
        }

    def _write_log(self, request: Any, prompt: str) -> None:
        tokens = tokens_of(prompt, request.max_tokens or NUM_TOKENS)
        answer = self._answer(request, tokens)
        started = common_pb2.StreamStarted(request_id=request.request_id, model="tiny", prompt_tokens=3)
        log: list[dict[str, Any]] = [{"index": 0, "started": started}]
        for begin in range(0, len(tokens), self.merge):
            part = tokens[begin : begin + self.merge]
            delta = common_pb2.StreamDelta(
                text="".join(text for _, text in part), token_ids=[token for token, _ in part]
            )
            log.append({"index": begin + len(part), "delta": delta})
        finished = common_pb2.StreamFinished(
            finish_reason=self.finish_reason,
            stop_match=answer["stop_match"],
            usage=answer["usage"],
            timings=answer["timings"],
            error=self.stream_error,
        )
        if isinstance(request, inference_pb2.StreamChatRequest) and request.tools:
            finished.message.CopyFrom(assistant_message(request, answer["text"]))
        log.append({"index": len(tokens) + 1, "finished": finished})
        self.logs[request.request_id] = log

    def _send(
        self, request_id: str, next_index: int, response_type: Any, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        for entry in self.logs[request_id]:
            if entry["index"] < next_index:
                continue
            self.on_event(request_id, entry["index"])
            if not context.is_active():
                return
            if self.cancelled[request_id].is_set():
                finished = common_pb2.StreamFinished(finish_reason=common_pb2.FINISH_REASON_CANCELLED)
                yield response_type(index=entry["index"], finished=finished)
                return
            yield response_type(**entry)


def assistant_message(request: Any, text: str) -> common_pb2.ChatMessage:
    """An answer that calls each tool once."""
    calls = [common_pb2.ToolCall(id="c1", name=tool.name, arguments="{}") for tool in request.tools]
    return common_pb2.ChatMessage(role="assistant", content=text, tool_calls=calls)


def model(name: str, source: str = "/models/tiny", state: int = admin_pb2.MODEL_STATE_SERVING) -> admin_pb2.Model:
    """A model as the fake server describes it."""
    return admin_pb2.Model(
        model=name,
        kind=admin_pb2.MODEL_KIND_GENERATION,
        state=state,
        source=source,
        architecture="LlamaForCausalLM",
        precision="int8",
        device="cpu",
        max_model_len=512,
        vocab_size=4096,
        parameter_count=5_000_000,
        is_default=True,
        load=admin_pb2.ModelLoad(running_requests=1, kv_use=0.25),
    )
