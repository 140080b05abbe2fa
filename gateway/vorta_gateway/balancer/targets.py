"""What `--upstream` says: endpoints, or a name that stands for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vorta.errors import InvalidArgument

__all__ = ["DnsName", "Resolver", "SystemResolver", "Targets", "parse_targets"]

_DNS = "dns:///"


@dataclass(frozen=True, slots=True)
class DnsName:
    """A name whose addresses are the endpoints.

    Attributes:
        name: A host name.
        port: Of all of its addresses.
    """

    name: str
    port: int


Targets = tuple[str, ...] | DnsName
"""Endpoints as "host:port" (or "unix:path"), or a name."""


class Resolver(Protocol):
    """Tells the addresses of a name."""

    async def resolve(self, name: str) -> Sequence[str]:
        """Its IP addresses now. Raises OSError; what it answers with none is taken for a failure too."""
        ...


class SystemResolver:
    """The operating system's resolver."""

    async def resolve(self, name: str) -> Sequence[str]:
        """See `Resolver`."""
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return [str(address[0]) for _, _, _, _, address in found]


def parse_targets(text: str) -> Targets:
    """The targets of "host:port", "host:port,host:port" or "dns:///name:port"; IPv6 addresses stand in brackets.

    Raises:
        InvalidArgument: It is none of these.
    """
    if text.startswith(_DNS):
        host, port = _host_and_port(text.removeprefix(_DNS))
        return DnsName(host, port)
    targets = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not targets:
        raise InvalidArgument("an upstream is HOST:PORT[,HOST:PORT…] or dns:///NAME:PORT", field="upstream")
    for target in targets:
        if not target.startswith("unix:"):
            _host_and_port(target)
    return targets


def join_host_port(host: str, port: int) -> str:
    """An endpoint's target."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if is_bracketed else host
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65_536
    if not name or not is_port or "/" in name or ("," in name) or (":" in name and not is_bracketed):
        raise InvalidArgument(f"{text[:100]!r} is not HOST:PORT", field="upstream")
    return name, int(port)
