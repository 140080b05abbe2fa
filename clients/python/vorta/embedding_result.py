"""What embedding and reranking return: frozen values, without grpc or protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vorta._packed import unpack_vector
from vorta.errors import VortaError
from vorta.result import Usage

__all__ = [
    "Embedding",
    "EmbeddingFailure",
    "EmbeddingSummary",
    "Embeddings",
    "RerankResult",
    "Reranking",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """One text's vector; with pooling "token" its tokens' vectors."""

    index: int
    """Which input, from 0."""
    packed: bytes = field(repr=False)
    """The vector as float32, little-endian, for `numpy.frombuffer` and alike. With pooling "token" the tokens' vectors,
    one behind the other."""
    num_tokens: int
    """Tokens of the text as computed, special tokens included."""
    num_truncated_tokens: int = 0
    """Tokens that were cut off."""

    @property
    def vector(self) -> list[float]:
        """The numbers of `packed`, decoded at each use."""
        return unpack_vector(self.packed)

    @property
    def token_vectors(self) -> list[list[float]]:
        """With pooling "token": one vector for each token."""
        size = len(self.packed) // max(self.num_tokens, 1)
        return [
            unpack_vector(self.packed[place * size : (place + 1) * size]) for place in range(self.num_tokens) if size
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Vectors of texts, in their order. Iterating gives the `Embedding`s."""

    model: str
    embeddings: tuple[Embedding, ...]
    dimensions: int
    """Numbers of each vector."""
    usage: Usage

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors as lists of numbers, decoded at each use."""
        return [embedding.vector for embedding in self.embeddings]

    @property
    def vector(self) -> list[float]:
        """The first text's vector: the only one of `embed("a text")`."""
        return self.embeddings[0].vector

    def __iter__(self) -> Iterator[Embedding]:
        return iter(self.embeddings)

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, index: int) -> Embedding:
        return self.embeddings[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFailure:
    """A text of a stream that has no vector, and why."""

    index: int
    """Which input, from 0."""
    error: VortaError


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSummary:
    """The end of a stream of embeddings."""

    model: str
    num_inputs: int
    num_failures: int
    dimensions: int
    """Numbers of each vector."""
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """A document's score; greater is better."""

    index: int
    """Which document, from 0."""
    relevance_score: float
    text: str | None = None
    """The document, when `return_documents` is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranking:
    """The best documents, best first. Iterating gives the `RerankResult`s."""

    model: str
    results: tuple[RerankResult, ...]
    usage: Usage

    def __iter__(self) -> Iterator[RerankResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> RerankResult:
        return self.results[index]
