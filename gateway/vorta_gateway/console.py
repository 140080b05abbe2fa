"""/console/: the page, from files built beforehand."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from vorta.errors import NotFound
from vorta_gateway.app import Page
from vorta_gateway.http import HttpReply, HttpRequest
from vorta_gateway.status import StatusError

__all__ = ["console_pages"]

_PREFIX = "/console/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src *; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def console_pages() -> dict[str, Page]:
    """The pages by path. All files are read once; their names carry a hash of what is in them."""
    found = dict(_read(files("vorta_gateway").joinpath("console"), ""))

    async def answer(request: HttpRequest, reply: HttpReply) -> None:
        name = request.path.removeprefix(_PREFIX) or "index.html"
        data = found.get(name)
        if data is None:
            raise StatusError.of(NotFound("there is nothing at this path", reason="UNSPECIFIED"))
        suffix = name[name.rfind(".") :]
        keep = "no-cache" if suffix == ".html" else "public, max-age=31536000, immutable"
        headers = [
            ("cache-control", keep),
            ("content-security-policy", _POLICY),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
        ]
        await reply.send(200, data, _TYPES.get(suffix, "application/octet-stream"), headers)

    async def redirect(request: HttpRequest, reply: HttpReply) -> None:
        await reply.send(307, b"", "text/plain", [("location", _PREFIX)])

    return (
        {_PREFIX: Page(answer=answer), "/console": Page(answer=redirect), "/": Page(answer=redirect)} if found else {}
    )


def _read(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    if not folder.is_dir():
        return []
    made: list[tuple[str, bytes]] = []
    for item in folder.iterdir():
        if item.is_dir():
            made += _read(item, f"{prefix}{item.name}/")
        elif not item.name.startswith("."):
            made.append((prefix + item.name, item.read_bytes()))
    return made
