"""Answers grounded in a collection: what to search for, what the model is told, and which hits an answer rests on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2, inference_pb2
from vorta_server.front import vector_conversion
from vorta_server.front.call import CallContext
from vorta_server.front.embedder import Embedder
from vorta_server.front.vector_service import text_field
from vorta_server.front.vector_store import VectorStore
from vorta_server.registry.registry import ServingModel
from vorta_server.vectors import operation as op
from vorta_server.workers.protocol import ChatMessage, Prompt

__all__ = ["Grounder", "Grounding", "answer_chat", "cited"]

INSTRUCTION = "Answer from the context only."
DEFAULT_LIMIT = 4
MAX_LIMIT = 64
MAX_QUESTION_CHARACTERS = 65_536

# Tokens that the prompt leaves for the answer where the request does not say how many it wants.
_ANSWER_TOKENS = 256

_MARKER = re.compile(r"\[(\d{1,3})\]")
_WORD = re.compile(r"\w+")

# Fields of a StreamAnswerRequest that are about generation, and the same in a StreamChatRequest.
_GENERATION_FIELDS = [
    name
    for name, descriptor in inference_pb2.StreamAnswerRequest.DESCRIPTOR.fields_by_name.items()
    if name == "model"
    or (
        descriptor.number >= 10
        and (other := inference_pb2.StreamChatRequest.DESCRIPTOR.fields_by_name.get(name)) is not None
        and other.number == descriptor.number
    )
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """What an answer is to rest on.

    Attributes:
        hits: What was found, best first.
        passages: The hits' texts, as many of the first as the model's context takes.
    """

    hits: list[op.Hit]
    passages: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounder:
    """Finds what answers rest on.

    Attributes:
        store: The vector worker.
        embedder: Embeds questions.
    """

    store: VectorStore
    embedder: Embedder

    async def find(
        self, request: inference_pb2.StreamAnswerRequest, target: ServingModel, call: CallContext
    ) -> Grounding:
        """Searches for the question. Raises InvalidArgument naming the field, or what embedding and search raise."""
        question = vector_conversion.required(request, "question")
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise InvalidArgument(
                f"question has {len(question)} characters; at most {MAX_QUESTION_CHARACTERS} are taken",
                reason="INPUT_TOO_LONG",
                field="question",
            )
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidArgument(f"limit must be 1 to {MAX_LIMIT}, got {limit}", field="limit")
        condition = None
        if request.HasField("filter"):
            condition = vector_conversion.operation_filter(request.filter, "filter")
        info = await self.store.collection(vector_conversion.required(request, "collection"), call)
        definition = info.collection
        is_hybrid = request.hybrid if request.HasField("hybrid") else bool(definition.text_fields)
        search = op.Search(
            collection=request.collection,
            vectors=await self.embedder.queries([question], model=definition.embedding_model, call=call),
            texts=[question] if is_hybrid else [],
            limit=limit,
            filter=condition,
            score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
        )
        found = await self.store.ask(search, op.SearchResults, call)
        hits = found.results[0].hits
        name = request.text_field or text_field(definition)
        texts = [_text(hit.payload, name) for hit in hits]
        return Grounding(hits=hits, passages=await _fitting(request, texts, target))


def answer_chat(request: inference_pb2.StreamAnswerRequest, passages: Sequence[str]) -> inference_pb2.StreamChatRequest:
    """The conversation that asks the model."""
    chat = inference_pb2.StreamChatRequest()
    for name in _GENERATION_FIELDS:
        descriptor = request.DESCRIPTOR.fields_by_name[name]
        if descriptor.is_repeated:
            getattr(chat, name).MergeFrom(getattr(request, name))
        elif descriptor.message_type is not None:
            if request.HasField(name):
                getattr(chat, name).CopyFrom(getattr(request, name))
        elif not descriptor.has_presence or request.HasField(name):
            setattr(chat, name, getattr(request, name))
    chat.messages.extend(
        common_pb2.ChatMessage(role=message.role, content=message.content) for message in _messages(request, passages)
    )
    return chat


def cited(answer: str, grounding: Grounding) -> list[str]:
    """Ids of the hits that an answer rests on, in the order of the hits.

    Those that it names, as [1]; when it names none, those whose text has the most of the answer's words, at least half.
    """
    passages = grounding.passages
    named = {int(number) for number in _MARKER.findall(answer)} & set(range(1, len(passages) + 1))
    if named:
        return [grounding.hits[number - 1].id for number in sorted(named)]
    words = set(_words(answer))
    shares = [len(words & set(_words(passage))) / max(1, len(words)) for passage in passages]
    best = max(shares, default=0.0)
    if best < 0.5:
        return []
    return [hit.id for hit, share in zip(grounding.hits, shares, strict=False) if share == best]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _messages(request: inference_pb2.StreamAnswerRequest, passages: Sequence[str]) -> list[ChatMessage]:
    instruction = request.instruction if request.HasField("instruction") else INSTRUCTION
    context = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    messages = [ChatMessage("user", f"Context:\n{context}\n\nQuestion: {request.question}")]
    return [ChatMessage("system", instruction), *messages] if instruction else messages


async def _fitting(request: inference_pb2.StreamAnswerRequest, texts: list[str], target: ServingModel) -> list[str]:
    """The first texts with which the prompt leaves room for the answer; the first one is cut if it must be."""
    max_len = target.card.max_model_len
    wanted = request.max_tokens if request.HasField("max_tokens") else min(_ANSWER_TOKENS, max_len // 4)
    room = max_len - wanted

    async def fits(passages: Sequence[str]) -> bool:
        prompt = Prompt(messages=_messages(request, passages), add_generation_prompt=True)
        try:
            return len((await target.channel.tokenize(prompt)).token_ids) <= room
        except InvalidArgument as error:
            if error.reason != "CONTEXT_LENGTH_EXCEEDED":
                raise
            return False

    if await fits(texts):
        return texts
    low, high = 0, len(texts) - 1  # so many fit, and not more
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if await fits(texts[:middle]) else (low, middle - 1)
    if low:
        return texts[:low]
    text = texts[0]
    low, high = 0, len(text)
    while high - low > 16:
        middle = (low + high) // 2
        low, high = (middle, high) if await fits([text[:middle]]) else (low, middle)
    return [text[:low]]


def _text(payload: str, field_name: str) -> str:
    """The text of a field of a payload; empty where there is none."""
    value = msgspec.json.decode(payload) if payload else None
    for part in field_name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
