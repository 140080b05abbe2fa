"""/openapi.json, and /docs, a page that shows it: routes, fields, examples to send. No script from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from vorta_gateway.app import Page
from vorta_gateway.http import HttpReply, HttpRequest
from vorta_gateway.openapi import Comments, comments_of

__all__ = ["contract_comments", "docs_pages"]


def contract_comments() -> Comments:
    """The comments of Vorta's own protos."""
    data = files("vorta_gateway").joinpath("contract.binpb").read_bytes()
    return comments_of(FileDescriptorSet.FromString(data).file)


def docs_pages(document: bytes) -> dict[str, Page]:
    """The pages by path.

    Args:
        document: OpenAPI, as JSON.
    """
    html = files("vorta_gateway").joinpath("docs.html").read_bytes()

    async def answer_document(request: HttpRequest, reply: HttpReply) -> None:
        await reply.send(200, document)

    async def answer_html(request: HttpRequest, reply: HttpReply) -> None:
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        await reply.send(200, html, "text/html; charset=utf-8", [("content-security-policy", policy)])

    return {"/openapi.json": Page(answer=answer_document), "/docs": Page(answer=answer_html)}
