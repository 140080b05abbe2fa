"""What an upstream may be written as."""

from __future__ import annotations

import pytest

from vorta.errors import InvalidArgument
from vorta_gateway.balancer import DnsName, parse_targets


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("localhost:50051", ("localhost:50051",)),
        ("a:1, b:2,a:1,", ("a:1", "b:2")),
        ("[::1]:50051", ("[::1]:50051",)),
        ("unix:/run/vorta.sock", ("unix:/run/vorta.sock",)),
        ("dns:///vorta.example:50051", DnsName("vorta.example", 50051)),
    ],
)
def test_targets(text: str, targets: object) -> None:
    assert parse_targets(text) == targets


@pytest.mark.parametrize(
    "text", ["", ",", "host", "host:", ":1", "host:0", "host:65536", "host:x", "::1:50051", "http://a:1", "dns:///a"]
)
def test_malformed_targets_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_targets(text)
    assert raised.value.field == "upstream"
