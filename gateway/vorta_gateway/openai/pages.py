"""The OpenAI API's paths."""

from __future__ import annotations

from vorta_gateway.app import Page
from vorta_gateway.openai.chat import ChatCompletions
from vorta_gateway.openai.completions import Completions
from vorta_gateway.openai.embeddings import Embeddings
from vorta_gateway.openai.errors import send_openai_error
from vorta_gateway.openai.models import Models
from vorta_gateway.upstream import Upstream

__all__ = ["openai_pages"]


def openai_pages(upstream: Upstream, *, max_body_bytes: int) -> dict[str, Page]:
    """The pages by path."""
    chat = ChatCompletions(upstream, max_body_bytes=max_body_bytes)
    completions = Completions(upstream, max_body_bytes=max_body_bytes)
    embeddings = Embeddings(upstream, max_body_bytes=max_body_bytes)
    models = Page(answer=Models(upstream).answer, send_error=send_openai_error)
    return {
        "/v1/chat/completions": Page(answer=chat.answer, methods=("POST",), send_error=send_openai_error),
        "/v1/completions": Page(answer=completions.answer, methods=("POST",), send_error=send_openai_error),
        "/v1/embeddings": Page(answer=embeddings.answer, methods=("POST",), send_error=send_openai_error),
        "/v1/models": models,
        "/v1/models/": models,
    }
