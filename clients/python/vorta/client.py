"""The client for threads; its asyncio twin is `vorta.async_client`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from vorta import (
    _embedding_request,
    _embedding_response,
    _request,
    _response,
    _vector_request,
    _vector_response,
)
from vorta._call import HEALTH_TIMEOUT_S, new_stream_call, resumed_stream_call
from vorta._channel import ChannelConfig, Option, Tls
from vorta._embedding_request import Texts
from vorta._method import ADMIN, EMBEDDING, HEALTH, INFERENCE, VECTOR
from vorta._request import Messages, Prompt, ToolLike
from vorta._transport import Transport
from vorta.answer_stream import AnswerStream
from vorta.collection import Collection
from vorta.embedding_result import Embedding, EmbeddingFailure, Embeddings, EmbeddingSummary, Reranking, RerankResult
from vorta.options import AnswerOptions, EmbedOptions, RerankOptions
from vorta.result import Generation, HealthStatus, Model, ServerInfo, Tokenization
from vorta.result_stream import ResultStream
from vorta.retry import RetryPolicy
from vorta.sampling import Sampling
from vorta.stream import Stream
from vorta.v1 import admin_pb2, embedding_pb2, inference_pb2, vector_pb2
from vorta.vector_result import Alias, CollectionInfo, CollectionStats, IndexOptions, Snapshot

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
        config = ChannelConfig(
            target=target,
            api_key=api_key,
            timeout_s=timeout_s,
            tls=tls,
            retry=retry or RetryPolicy(),
            options=options,
        )
        self._transport = Transport(config)

    def generate(
        self, prompt: Prompt, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Generation:
        """Continues a prompt, given as text or token ids, and returns when all of the text is there."""
        request = _request.generate_request(inference_pb2.GenerateRequest, prompt, model, sampling, "generate")
        return _response.generation(self._transport.call(INFERENCE["Generate"], request, timeout_s))

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
        tool_choice: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generation:
        """Answers a conversation; the result's `message` has the tool calls.

        Args:
            messages: `ChatMessage`s or mappings with their keys, oldest first; a string is one user message.
            tools: `Tool`s or mappings with their keys; OpenAI's nested form is taken too.
            add_generation_prompt: Open the assistant's turn. Default: yes.
            continue_final_message: Continue the last message instead. Default: no.
            tool_choice: "auto", "none", "required" (the answer is calls of tools) or the name of the tool to call.
        """
        options = {
            **sampling,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tool_choice": tool_choice,
        }
        request = _request.chat_request(inference_pb2.ChatRequest, messages, tools, model, options, "chat")
        return _response.generation(self._transport.call(INFERENCE["Chat"], request, timeout_s))

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
        tool_choice: str | None = None,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Answers a conversation and returns the events as they happen; arguments as `chat` and `stream_generate`."""
        options = {
            **sampling,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tool_choice": tool_choice,
        }
        request = _request.chat_request(inference_pb2.StreamChatRequest, messages, tools, model, options, "stream_chat")
        return self._stream("StreamChat", request, resume_window_s, timeout_s)

    def resume(self, request_id: str, next_index: int = 0, *, timeout_s: float | None = None) -> Stream:
        """Continues the stream of a running request from an event on; NotFound when its resume window is over."""
        call = resumed_stream_call(self._transport.config, self._transport.retrier, request_id, next_index, timeout_s)
        return Stream(self._transport.channel, call)

    def cancel(self, request_id: str, *, timeout_s: float | None = None) -> None:
        """Cancels a running request; NotFound when there is none of this id."""
        request = _request.simple_request(inference_pb2.CancelGenerateRequest, request_id=request_id)
        self._transport.call(INFERENCE["CancelGenerate"], request, timeout_s)

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
        return _response.tokenization(self._transport.call(INFERENCE["Tokenize"], request, timeout_s))

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
        text: str = self._transport.call(INFERENCE["Detokenize"], request, timeout_s).text
        return text

    def embed(
        self,
        inputs: str | Sequence[str],
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """Turns a text, or several, into vectors. All or nothing: one bad text fails the call, and is named.

        More than 2,048 texts go over StreamEmbed, which is not retried.

        Args:
            model: Default: the server's default embedding model.
        """
        texts = _embedding_request.texts_of(inputs)
        if len(texts) <= _embedding_request.MAX_INPUTS:
            request = _embedding_request.embed_request(texts, model, options)
            return _embedding_response.embeddings(self._transport.call(EMBEDDING["Embed"], request, timeout_s))
        with self.stream_embed(texts, model=model, timeout_s=timeout_s, **options) as stream:
            results = list(stream)
            return _embedding_response.collect_embeddings(results, stream.result())

    def stream_embed(
        self,
        texts: Texts,
        *,
        model: str | None = None,
        batch_size: int = 256,
        max_in_flight: int = 4,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> ResultStream[Embedding | EmbeddingFailure, EmbeddingSummary]:
        """Turns texts into vectors as they come, any number of them; results come as they are computed.

        Each result has its text's `index`. A bad text has an `EmbeddingFailure` in its place and the stream goes on.
        Texts are taken, in this thread, while results are read.

        Args:
            batch_size: Texts of a message, 1 to 2,048.
            max_in_flight: Messages whose results may be outstanding.
        """
        _embedding_request.check_stream_options(batch_size, max_in_flight)
        messages = self._transport.exchange(
            EMBEDDING["StreamEmbed"],
            _embedding_request.stream_embed_requests(texts, model, options, batch_size, "stream_embed"),
            _embedding_response.count_embedded,
            max_in_flight * batch_size,
            timeout_s,
        )
        return ResultStream(messages, _embedding_response.stream_embed_event)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Reranking:
        """Ranks up to 2,048 documents by how well they answer a query, best first.

        Args:
            model: A cross-encoder or an embedding model. Default: the server's.
        """
        request = _embedding_request.rerank_request(
            embedding_pb2.RerankRequest, query, documents, model, options, "rerank"
        )
        return _embedding_response.reranking(self._transport.call(EMBEDDING["Rerank"], request, timeout_s))

    def stream_rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> ResultStream[RerankResult, Reranking]:
        """Ranks up to 65,536 documents: scores come as they are computed, in no order; `result()` is the ranking."""
        request = _embedding_request.rerank_request(
            embedding_pb2.StreamRerankRequest, query, documents, model, options, "stream_rerank"
        )
        messages = self._transport.stream(EMBEDDING["StreamRerank"], request, timeout_s)
        return ResultStream(messages, _embedding_response.stream_rerank_event)

    def answer(
        self,
        question: str,
        collection: str,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream:
        """Answers a question from a collection: what was found, the answer's tokens, then which hits it rests on.

        Args:
            collection: Its name or an alias.
            model: The generation model. Default: the server's.
        """
        request = _vector_request.answer_request(question, collection, model, options)
        return AnswerStream(self._transport, request, timeout_s)

    def collection(self, name: str) -> Collection:
        """The points of a collection (or of an alias), to write, read and search; asks nothing of the server."""
        return Collection(self._transport, name)

    def create_collection(
        self,
        name: str,
        dimension: int | None = None,
        *,
        distance: Literal["cosine", "dot", "l2"] | None = None,
        index: IndexOptions | Literal["auto", "flat", "hnsw", "ivf_pq", "sq8"] | None = None,
        text_fields: Sequence[str] = (),
        schema: Mapping[str, str] | None = None,
        embedding_model: str | None = None,
        description: str | None = None,
        timeout_s: float | None = None,
    ) -> CollectionInfo:
        """Makes a collection; AlreadyExists when a collection or an alias has the name.

        Args:
            name: 1 to 64 letters, digits, '_' or '-', the first a letter or digit.
            dimension: Numbers of each vector, 1 to 65,536. Default: the embedding model's.
            distance: Default: cosine.
            index: Default: auto.
            text_fields: Payload fields whose text is searched by words.
            schema: Types of payload fields (`FieldType`'s names), which writes must keep to; others are inferred.
            embedding_model: Default: the server's, at the time of use.
            description: For people, at most 1,024 bytes.
        """
        request = _vector_request.create_collection_request(
            name,
            dimension=dimension,
            distance=distance,
            index=index,
            text_fields=text_fields,
            schema=schema,
            embedding_model=embedding_model,
            description=description,
        )
        response = self._transport.call(VECTOR["CreateCollection"], request, timeout_s)
        return _vector_response.collection(response.collection)

    def get_collection(self, name: str, *, timeout_s: float | None = None) -> CollectionInfo:
        """A collection's definition and state, by its name or an alias."""
        request = _request.simple_request(vector_pb2.GetCollectionRequest, collection=name)
        response = self._transport.call(VECTOR["GetCollection"], request, timeout_s)
        return _vector_response.collection(response.collection)

    def list_collections(self, *, timeout_s: float | None = None) -> list[CollectionInfo]:
        """All collections, by name."""
        response = self._transport.call(VECTOR["ListCollections"], vector_pb2.ListCollectionsRequest(), timeout_s)
        return [_vector_response.collection(message) for message in response.collections]

    def delete_collection(self, name: str, *, timeout_s: float | None = None) -> None:
        """Deletes a collection (its own name, not an alias), its points and its aliases; snapshots stay."""
        request = _request.simple_request(vector_pb2.DeleteCollectionRequest, collection=name)
        self._transport.call(VECTOR["DeleteCollection"], request, timeout_s)

    def collection_stats(self, name: str, *, timeout_s: float | None = None) -> CollectionStats:
        """A collection's state: points, index, memory, disk."""
        request = _request.simple_request(vector_pb2.GetCollectionStatsRequest, collection=name)
        response = self._transport.call(VECTOR["GetCollectionStats"], request, timeout_s)
        return _vector_response.stats(response.stats)

    def swap_alias(self, alias: str, collection: str, *, timeout_s: float | None = None) -> Alias:
        """Points an alias to a collection, at once: no call sees neither. Makes the alias if need be."""
        request = _request.simple_request(vector_pb2.SwapAliasRequest, alias=alias, collection=collection)
        response = self._transport.call(VECTOR["SwapAlias"], request, timeout_s)
        return _vector_response.alias(response.alias, response.previous_collection)

    def delete_alias(self, alias: str, *, timeout_s: float | None = None) -> None:
        """Deletes an alias; the collection stays."""
        request = _request.simple_request(vector_pb2.DeleteAliasRequest, alias=alias)
        self._transport.call(VECTOR["DeleteAlias"], request, timeout_s)

    def list_aliases(self, *, timeout_s: float | None = None) -> list[Alias]:
        """All aliases, by name."""
        response = self._transport.call(VECTOR["ListAliases"], vector_pb2.ListAliasesRequest(), timeout_s)
        return [_vector_response.alias(message) for message in response.aliases]

    def create_snapshot(self, collection: str, *, timeout_s: float | None = None) -> Snapshot:
        """Keeps a collection's state as a snapshot on the server's disk."""
        request = _request.simple_request(vector_pb2.CreateSnapshotRequest, collection=collection)
        response = self._transport.call(VECTOR["CreateSnapshot"], request, timeout_s)
        return _vector_response.snapshot(response.snapshot)

    def list_snapshots(self, collection: str, *, timeout_s: float | None = None) -> list[Snapshot]:
        """A collection's snapshots, newest first."""
        request = _request.simple_request(vector_pb2.ListSnapshotsRequest, collection=collection)
        response = self._transport.call(VECTOR["ListSnapshots"], request, timeout_s)
        return [_vector_response.snapshot(message) for message in response.snapshots]

    def delete_snapshot(self, collection: str, snapshot: str, *, timeout_s: float | None = None) -> None:
        """Deletes a snapshot."""
        request = _request.simple_request(vector_pb2.DeleteSnapshotRequest, collection=collection, snapshot=snapshot)
        self._transport.call(VECTOR["DeleteSnapshot"], request, timeout_s)

    def restore_snapshot(
        self,
        collection: str,
        snapshot: str,
        *,
        target: str | None = None,
        replace: bool | None = None,
        timeout_s: float | None = None,
    ) -> CollectionInfo:
        """Makes a collection what a snapshot holds; a damaged snapshot is refused and changes nothing.

        Args:
            collection: The one that the snapshot was made of.
            target: Name of the collection that gets the content. Default: the one that it was made of.
            replace: Whether a collection of that name is replaced. Default: no, AlreadyExists.
        """
        request = _request.simple_request(
            vector_pb2.RestoreSnapshotRequest,
            collection=collection,
            snapshot=snapshot,
            target=target,
            replace=replace,
        )
        response = self._transport.call(VECTOR["RestoreSnapshot"], request, timeout_s)
        return _vector_response.collection(response.collection)

    def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that the server knows, by id."""
        response = self._transport.call(ADMIN["ListModels"], admin_pb2.ListModelsRequest(), timeout_s)
        return [_response.model(entry) for entry in response.models]

    def model(self, model: str, *, timeout_s: float | None = None) -> Model:
        """One model; NotFound when it is unknown."""
        request = _request.simple_request(admin_pb2.GetModelRequest, model=model)
        return _response.model(self._transport.call(ADMIN["GetModel"], request, timeout_s).model)

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
        return _response.model(self._transport.call(ADMIN["LoadModel"], request, timeout_s).model)

    def unload_model(self, model: str, *, grace_s: float | None = None, timeout_s: float | None = None) -> Model:
        """Stops a model after what it runs has had `grace_s` seconds to finish."""
        request = _request.simple_request(admin_pb2.UnloadModelRequest, model=model, grace_s=grace_s)
        return _response.model(self._transport.call(ADMIN["UnloadModel"], request, timeout_s).model)

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The server's version, limits and state."""
        response = self._transport.call(ADMIN["GetServerInfo"], admin_pb2.GetServerInfoRequest(), timeout_s)
        return _response.server_info(response)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """The state of the server, or of one service, now: never retried. NotFound for an unknown service."""
        method = HEALTH["Check"]
        request = _request.simple_request(method.request_type, service=service)
        return _response.health(self._transport.call(method, request, timeout_s or HEALTH_TIMEOUT_S))

    def close(self) -> None:
        """Closes the connection; calls that run end with Cancelled. Idempotent."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transport.config.target!r})"

    def _stream(self, method: str, request: Any, resume_window_s: float | None, timeout_s: float | None) -> Stream:
        call = new_stream_call(
            self._transport.config, self._transport.retrier, method, request, resume_window_s, timeout_s
        )
        return Stream(self._transport.channel, call)
