"""The service of an encoder's worker: texts to tokens, through the engine, to vectors and scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vorta.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, VortaError
from vorta_server.embedding.batcher import BatchLimits
from vorta_server.embedding.encoder import Encoder, EncoderInfo
from vorta_server.embedding.engine import EncodeJob, EncoderEngine
from vorta_server.engine.request import Failure
from vorta_server.registry.source import FAKE_KINDS
from vorta_server.runners.fake_encoder import FakeEncoder
from vorta_server.tokenization.encoder_tokenizer import EncodedText, EncoderTokenizer
from vorta_server.workers.artifact import device_of, engine_folder, is_on_gpu, served_artifact
from vorta_server.workers.call_host import Call
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.memory import rss_bytes
from vorta_server.workers.protocol import (
    DOCUMENT_PROMPTS,
    QUERY_PROMPTS,
    Embed,
    EmbedReply,
    ModelCard,
    Score,
    ScoreReply,
    Stats,
)

__all__ = ["EncoderService", "build_encoder"]

Float32Array = NDArray[np.float32]
T = TypeVar("T")

# Texts of a call up to this many characters together are tokenized between two batches; more of them in a thread, which
# holds the interpreter seldom.
_INLINE_CHARACTERS = 8192

# Calls whose texts wait for that thread.
_MAX_TOKENIZING = 256

# Vectors of one answer.
_MAX_VECTOR_BYTES = 48 * 1024 * 1024


class EncoderService:
    """A `CallService` over an encoder.

    Args:
        engine: Computes.
        tokenizer: Of the model.
        info: Of the model.
        name: The model's id, for messages.
        wake: Makes the host look at `has_work`. Thread-safe.
    """

    def __init__(
        self,
        engine: EncoderEngine,
        tokenizer: EncoderTokenizer,
        info: EncoderInfo,
        *,
        name: str,
        wake: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._info = info
        self._name = name
        self._wake = wake
        self._jobs: dict[Call, EncodeJob | None] = {}
        self._tokenized: deque[Callable[[], None]] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._num_tokenizing = 0

    @property
    def has_work(self) -> bool:
        """Whether texts wait to be computed, or tokenized ones to be queued."""
        return self._engine.has_work or bool(self._tokenized)

    @property
    def num_pending(self) -> int:
        """Calls without an answer."""
        return len(self._jobs)

    def submit(self, call: Call) -> None:
        """Checks, tokenizes and queues a call."""
        message = call.message
        if isinstance(message, Embed):
            self._check_embed(message)
            prompt = self._prompt(message)
            texts = [prompt + text for text in message.texts] if prompt else message.texts
            self._tokenize(
                call,
                sum(map(len, texts)),
                lambda: self._tokenizer.encode(texts, truncate=message.truncate),
                lambda encoded: self._queue_embed(call, message, encoded),
            )
        elif isinstance(message, Score):
            characters = len(message.query) + sum(map(len, message.documents))
            if self._info.kind == "rerank":
                self._tokenize(
                    call,
                    characters,
                    lambda: self._tokenizer.encode_pairs(
                        message.query, message.documents, max_tokens_per_doc=message.max_tokens_per_doc
                    ),
                    lambda encoded: self._queue_pairs(call, message, encoded),
                )
            else:
                self._tokenize(
                    call,
                    characters,
                    lambda: self._search_sides(message),
                    lambda sides: self._queue_cosines(call, sides),
                )
        else:
            raise FailedPrecondition(
                f"model {self._name} holds no collections", metadata={"model": self._name, "kind": self._info.kind}
            )

    def cancel(self, call: Call) -> None:
        """Drops what waits of a call."""
        job = self._jobs.pop(call, None)
        if job is not None:
            self._engine.cancel(job)

    def step(self) -> None:
        """Queues what was tokenized, and computes one batch."""
        while self._tokenized:
            self._tokenized.popleft()()
        self._engine.step()

    def stats(self) -> Stats:
        """The queue and what was computed."""
        counters = self._engine.counters
        return Stats(
            running=self._engine.num_jobs,
            waiting=self._engine.num_waiting,
            step_count=counters.batches,
            prompt_token_count=counters.tokens,
            batch_size_sum=counters.texts,
            step_s_sum=counters.batch_s_sum,
            rss_bytes=rss_bytes(),
        )

    def close(self) -> None:
        """Stops the tokenizing thread and the engine's. Idempotent."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._engine.close()

    def _check_embed(self, message: Embed) -> None:
        info = self._info
        if info.kind != "embedding":
            raise FailedPrecondition(
                f"model {self._name} is for {info.kind}, not for embedding",
                metadata={"model": self._name, "kind": info.kind},
            )
        if not 0 <= message.dimensions <= info.hidden_size:
            raise InvalidArgument(
                f"dimensions must be 1 to {info.hidden_size}, got {message.dimensions}", field="dimensions"
            )

    def _prompt(self, message: Embed) -> str:
        if message.prompt is not None:
            return message.prompt
        name = message.prompt_name or self._info.default_prompt
        if not name:
            return ""
        prompt = self._info.prompts.get(name)
        if prompt is None:
            known = ", ".join(sorted(self._info.prompts)) or "none"
            raise InvalidArgument(
                f"prompt_name {name[:64]!r} is none of the model's prompts ({known})", field="prompt_name"
            )
        return prompt

    def _tokenize(self, call: Call, characters: int, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Runs `work` here or in the thread, and `then` on this thread; what they raise answers the call."""
        self._jobs[call] = None
        if characters <= _INLINE_CHARACTERS:
            self._answering(call, lambda: then(work()))
            return
        if self._num_tokenizing >= _MAX_TOKENIZING:
            del self._jobs[call]
            raise ResourceExhausted("too many texts wait for tokenization", retry_delay_s=1.0)

        def done(future: Future[T]) -> None:
            def go_on() -> None:
                self._num_tokenizing -= 1
                if call in self._jobs:
                    self._answering(call, lambda: then(future.result()))

            if not future.cancelled():
                self._tokenized.append(go_on)
                self._wake()

        self._num_tokenizing += 1
        self._executor.submit(work).add_done_callback(done)

    def _answering(self, call: Call, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._jobs.pop(call, None)
            call.fail(error)

    def _queue(self, call: Call, job: EncodeJob) -> None:
        self._jobs[call] = job
        self._engine.submit(job)

    def _queue_embed(self, call: Call, message: Embed, encoded: list[EncodedText]) -> None:
        failures: dict[int, Failure] = {}
        sequences: list[NDArray[np.int32]] = []
        for index, text in enumerate(encoded):
            error = self._text_error(index, message.texts[index], text)
            if error is None:
                sequences.append(text.token_ids)
            elif message.keep_going:
                failures[index] = Failure.of(error)
            else:
                raise error
        dimension = message.dimensions or self._info.hidden_size
        counts = [0 if index in failures else len(text.token_ids) for index, text in enumerate(encoded)]
        pooling = message.pooling or self._info.pooling
        num_bytes = 4 * dimension * (sum(counts) if pooling == "token" else len(sequences))
        if num_bytes > _MAX_VECTOR_BYTES:
            raise ResourceExhausted(
                f"the vectors have {num_bytes} bytes, more than the {_MAX_VECTOR_BYTES} of an answer; send fewer texts",
                reason="MESSAGE_TOO_LARGE",
                metadata={"size_bytes": num_bytes, "max_bytes": _MAX_VECTOR_BYTES},
            )

        def deliver(vectors: Float32Array | VortaError) -> None:
            self._jobs.pop(call, None)
            if isinstance(vectors, VortaError):
                call.fail(vectors)
                return
            call.reply(
                EmbedReply(
                    call_id=message.call_id,
                    vectors=vectors.astype("<f4", copy=False).tobytes(),
                    dimension=dimension,
                    token_counts=counts,
                    cut_counts=[text.num_cut for text in encoded],
                    failures=failures,
                )
            )

        if not sequences:
            deliver(np.empty((0, dimension), np.float32))
            return
        job = EncodeJob(
            sequences=sequences,
            pooling=pooling,
            normalize=True if message.normalize is None else message.normalize,
            dimensions=message.dimensions,
            deadline_s=message.deadline_s,
            deliver=deliver,
        )
        self._queue(call, job)

    def _text_error(self, index: int, text: str, encoded: EncodedText) -> VortaError | None:
        if not text:
            return InvalidArgument("must not be empty", reason="MISSING_FIELD", field=f"inputs[{index}]")
        limit = self._tokenizer.max_tokens
        if len(encoded.token_ids) > limit:
            return InvalidArgument(
                f"inputs[{index}] has {encoded.num_tokens} tokens; the model takes {limit} (set truncate to cut it)",
                reason="INPUT_TOO_LONG",
                field=f"inputs[{index}]",
                metadata={"num_tokens": encoded.num_tokens, "max_tokens": limit},
            )
        if not len(encoded.token_ids):
            return InvalidArgument(f"inputs[{index}] has no tokens", field=f"inputs[{index}]")
        return None

    def _queue_pairs(self, call: Call, message: Score, encoded: list[EncodedText]) -> None:
        uses_sigmoid = self._info.uses_sigmoid and not message.raw

        def deliver(logits: Float32Array | VortaError) -> None:
            self._jobs.pop(call, None)
            if isinstance(logits, VortaError):
                call.fail(logits)
                return
            scores = logits[:, 0].astype(np.float64)
            if uses_sigmoid:
                scores = 1.0 / (1.0 + np.exp(-scores))
            count = sum(len(text.token_ids) for text in encoded)
            call.reply(ScoreReply(call_id=message.call_id, scores=scores.tolist(), token_count=count))

        job = EncodeJob(
            sequences=[text.token_ids for text in encoded],
            token_types=[text.token_types for text in encoded],
            deadline_s=message.deadline_s,
            deliver=deliver,
        )
        self._queue(call, job)

    def _search_sides(self, message: Score) -> list[EncodedText]:
        """The query's tokens, then those of each document, each with its side's prompt; long ones are cut."""
        query = self._side_prompt(QUERY_PROMPTS) + message.query
        prefix = self._side_prompt(DOCUMENT_PROMPTS)
        documents = [prefix + document for document in message.documents]
        return [
            *self._tokenizer.encode([query], truncate="right"),
            *self._tokenizer.encode(documents, truncate="right", max_tokens=message.max_tokens_per_doc),
        ]

    def _side_prompt(self, names: tuple[str, ...]) -> str:
        return next((self._info.prompts[name] for name in names if name in self._info.prompts), "")

    def _queue_cosines(self, call: Call, sides: list[EncodedText]) -> None:
        message = call.message

        def deliver(vectors: Float32Array | VortaError) -> None:
            self._jobs.pop(call, None)
            if isinstance(vectors, VortaError):
                call.fail(vectors)
                return
            scores = vectors[1:] @ vectors[0]
            count = sum(len(text.token_ids) for text in sides)
            call.reply(ScoreReply(call_id=message.call_id, scores=scores.tolist(), token_count=count))

        job = EncodeJob(
            sequences=[text.token_ids for text in sides],
            pooling=self._info.pooling,
            normalize=True,
            deadline_s=message.deadline_s,
            deliver=deliver,
        )
        self._queue(call, job)


def build_encoder(config: WorkerConfig, *, wake: Callable[[], None]) -> tuple[EncoderService, ModelCard]:
    """Compiles the checkpoint if need be, loads the encoder and its tokenizer.

    Raises:
        VortaError: Naming the setting or the part of the checkpoint at fault.
    """
    encoder, folder, architecture, precision, num_parameters = _load(config)
    info = encoder.info
    if info.kind == "rerank" and info.num_labels != 1:
        raise FailedPrecondition(
            f"a reranker has one score, this model has {info.num_labels}",
            reason="CHECKPOINT_INVALID",
            field="num_labels",
        )
    length = min(config.max_model_len or info.max_model_len, info.max_model_len)
    limits = BatchLimits(
        max_tokens=config.max_batch_tokens,
        max_waiting_tokens=config.max_waiting_tokens,
        max_waiting_texts=config.max_waiting_texts,
    )
    service = EncoderService(
        EncoderEngine(encoder, limits, wake=wake),
        EncoderTokenizer(folder, max_tokens=length),
        info,
        name=config.model,
        wake=wake,
    )
    card = ModelCard(
        model=config.model,
        kind=info.kind,
        architecture=architecture,
        precision=precision,
        device=device_of(config),
        max_model_len=length,
        vocab_size=info.vocab_size,
        parameter_count=num_parameters,
        max_running_requests=limits.max_rows,
        dimension=info.hidden_size if info.kind == "embedding" else 0,
        prompt_names=sorted(info.prompts),
    )
    return service, card


def _load(config: WorkerConfig) -> tuple[Encoder, Path, str, str, int]:
    """The encoder, its tokenizer's folder, architecture, precision and number of parameters."""
    if config.runner == "fake":
        from vorta_server.workers.generation import write_byte_tokenizer

        folder = Path(config.cache_dir) / "byte-tokenizer"
        write_byte_tokenizer(folder)
        fake = FakeEncoder(kind=FAKE_KINDS[config.source], token_s=config.fake_prefill_token_s)
        return fake, folder, "Fake", "fp32", 0
    from vorta_server.runners.encoder import OnnxEncoder
    from vorta_server.runners.providers import choose_providers, parse_providers

    # Before a checkpoint is compiled for them.
    providers = choose_providers(parse_providers(config.providers))
    folder, manifest = served_artifact(config)
    encoder = OnnxEncoder(
        folder,
        threads=config.threads,
        providers=providers,
        cache_dir=engine_folder(config) if is_on_gpu(config) else None,
    )
    return encoder, folder, manifest.architecture, manifest.precision, manifest.num_parameters
