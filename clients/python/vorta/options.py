"""The keywords of embedding, reranking, searching and answering.

Absent (or None) means the server's default, never zero. Names, ranges and defaults are those of the contract's
requests; results are as the contract says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from vorta.filters import Filter

__all__ = ["AnswerOptions", "EmbedOptions", "HybridSearchOptions", "RerankOptions", "SearchOptions"]


class EmbedOptions(TypedDict, total=False):
    """Keywords of embed and stream_embed; see `vorta.v1.EmbedRequest`."""

    normalize: bool | None
    """Scale vectors to length 1. Default: yes."""
    truncate: bool | None
    """Cut texts that are too long, instead of refusing them. Default: no."""
    truncation_side: Literal["left", "right"] | None
    """Which end is cut. Default: right."""
    dimensions: int | None
    """Keep only the first numbers of each vector. Default: all."""
    prompt_name: str | None
    """One of the model's prompts, put before each text."""
    instruction: str | None
    """Text put before each text, instead of a prompt."""
    pooling: Literal["mean", "cls", "last", "token"] | None
    """How tokens become one vector. Default: the model's own way."""


class RerankOptions(TypedDict, total=False):
    """Keywords of rerank and stream_rerank; see `vorta.v1.RerankRequest`."""

    top_n: int | None
    """Most results. Default: all documents."""
    return_documents: bool | None
    """Put the documents' texts into the results. Default: no."""
    max_tokens_per_doc: int | None
    """Most tokens of each document; what is longer is cut."""
    raw_scores: bool | None
    """Scores without the sigmoid that maps them to 0 to 1. Default: no."""


class SearchOptions(TypedDict, total=False):
    """Keywords of search and batch_search; see `vorta.v1.SearchRequest`."""

    limit: int | None
    """Most hits, or groups. Default 10."""
    offset: int | None
    """Hits to skip. Default 0."""
    filter: Filter | Mapping[str, Any] | None
    """Only points that pass."""
    score_threshold: float | None
    """Only hits at least this good (under l2: at most)."""
    exact: bool | None
    """Compare with every vector instead of using the index. Default: no."""
    ef_search: int | None
    """HNSW: width of this search."""
    num_probes: int | None
    """IVF: cells that this search looks at."""
    with_payload: bool | None
    """Default: yes."""
    with_vector: bool | None
    """Default: no."""
    group_by: str | None
    """Group hits by this payload field."""
    group_size: int | None
    """Most hits of a group. Default 3."""


class HybridSearchOptions(SearchOptions, total=False):
    """Keywords of hybrid_search; see `vorta.v1.HybridSearchRequest`."""

    fusion: Literal["rrf", "weighted"] | None
    """How both lists become one. Default: rrf."""
    dense_weight: float | None
    """Weighted fusion: the vector side's share, 0 to 1. Default 0.5."""
    rrf_k: int | None
    """Reciprocal-rank fusion: its constant. Default 60."""
    num_candidates: int | None
    """Taken from each side before fusing."""


class AnswerOptions(TypedDict, total=False):
    """Keywords of answer; see `vorta.v1.StreamAnswerRequest`."""

    limit: int | None
    """Most hits to answer from. Default 4."""
    filter: Filter | Mapping[str, Any] | None
    """Only points that pass."""
    score_threshold: float | None
    """Only hits at least this good (under l2: at most)."""
    hybrid: bool | None
    """Search by words beside vectors. Default: whether the collection has text fields."""
    text_field: str | None
    """The payload field that holds a point's text."""
    instruction: str | None
    """The system message before context and question."""
    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop: bool | None
    ignore_eos: bool | None
    logprobs: int | None
    priority: int | None
    deterministic: bool | None
    skip_special_tokens: bool | None
    request_id: str | None
    json_object: bool | None
    """The answer must be a JSON object. Of this and the four that follow, one at most; see `Sampling`."""
    json_schema: str | Mapping[str, Any] | type | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None
