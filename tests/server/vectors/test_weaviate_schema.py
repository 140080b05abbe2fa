"""Names, payloads, URLs and ranking: what needs no Weaviate and no weaviate package."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.vectors.operation import Hit
from vorta_server.vectors.weaviate_config import WeaviateConfig, parse_weaviate_url
from vorta_server.vectors.weaviate_rank import fuse, group_value
from vorta_server.vectors.weaviate_schema import (
    class_name,
    collection_name,
    decode_name,
    encode_name,
    keyword_token,
    object_uuid,
    order_key,
    parse_moment,
    properties_of,
    property_field,
    property_name,
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
TEXTS = st.text(max_size=40)


@given(TEXTS, TEXTS)
def test_names_are_reversible_and_distinct_without_case(one: str, other: str) -> None:
    assert decode_name(encode_name(one)) == one
    assert (encode_name(one).lower() == encode_name(other).lower()) is (one == other)


@given(NAMES)
def test_class_names_are_weaviates(name: str) -> None:
    assert re.fullmatch(r"[A-Z][_0-9A-Za-z]{0,254}", class_name(name))
    assert collection_name(class_name(name)) == name


def test_classes_of_others_are_none_of_ours() -> None:
    assert collection_name("Article") is None


@given(TEXTS, st.sampled_from(["keyword", "integer", "float", "bool", "datetime", "geo", "text"]))
def test_property_names_are_weaviates(path: str, kind: str) -> None:
    name = property_name(kind, path)
    if name is not None:
        assert re.fullmatch(r"[_A-Za-z][_0-9A-Za-z]{0,230}", name)
        assert property_field(name) == (path, kind)


def test_a_path_may_be_too_long() -> None:
    assert property_name("keyword", "é" * 100) is None
    assert properties_of("a", json.dumps({"é" * 100: "x"}), {}, field="p").keys() == {
        "vortaId",
        "vortaOrder",
        "vortaPayload",
        "vortaFields",
    }


@given(TEXTS, TEXTS)
def test_order_is_that_of_bytes(one: str, other: str) -> None:
    assert (order_key(one) < order_key(other)) is (one.encode() < other.encode())


def test_ids_that_look_like_uuids_are_hashed_too() -> None:
    first = object_uuid("a")
    assert object_uuid(str(first)) != first


def test_keywords_survive_trimming() -> None:
    tokens = [keyword_token(text) for text in ("", " ", "a", " a", "a ", '"a"')]
    assert len({token.strip() for token in tokens}) == len(tokens)
    assert len(keyword_token("x" * 10_000)) < 100
    assert keyword_token("x" * 10_000) != keyword_token("x" * 10_001)


@pytest.mark.parametrize(
    ("payload", "properties", "paths"),
    [
        ("", {}, []),
        ('{"a": null}', {}, []),
        ('{"a": []}', {}, ["a"]),
        ('{"a": 1, "b": 1.5, "c": true}', {"i_a": [1], "n_b": [1.5], "b_c": [True]}, ["a", "b", "c"]),
        ('{"a": [1, 2.5, "x", null, true]}', {"i_a": [1], "n_a": [2.5], "k_a": ['"x"'], "b_a": [True]}, ["a"]),
        ('{"a": {"b": [{"c": 1}, {"c": 2}]}}', {"i_a_2eb_2ec": [1, 2]}, ["a", "a.b", "a.b.c"]),
        ('{"a": {"lat": 1, "lon": 2.5}}', {"g_a": (1.0, 2.5)}, ["a"]),
        ('{"a": {"lat": 91, "lon": 2}}', {"i_a_2elat": [91], "i_a_2elon": [2]}, ["a", "a.lat", "a.lon"]),
        ('{"a": 9223372036854775808}', {"n_a": [9.223372036854775808e18]}, ["a"]),
        ('{"t": "Hello You", "n": 3}', {"t_t": ["Hello You"], "k_t": ['"Hello You"'], "n_n": [3.0]}, ["n", "t"]),
    ],
)
def test_payloads_become_typed_properties(payload: str, properties: dict[str, Any], paths: list[str]) -> None:
    row = properties_of("id", payload, {"t": "text", "n": "float"}, field="payloads[0]")
    assert row.pop("vortaId") == "id"
    assert row.pop("vortaPayload") == payload
    assert [decode_name(path) for path in row.pop("vortaFields")] == paths
    del row["vortaOrder"]
    assert row == properties


def test_moments() -> None:
    row = properties_of("id", '{"a": "2026-01-02T03:04:05+01:00", "b": "2026-01-02"}', {}, field="p")
    assert [moment.isoformat() for moment in row["d_a"]] == ["2026-01-02T02:04:05+00:00"]
    assert "d_b" not in row
    for text in ("2026-13-02T03:04:05Z", "0001-01-01T00:00:00+14:00", "2026-01-02T03:04:05", "x"):
        assert parse_moment(text) is None
    assert parse_moment("2026-01-02t03:04:05.25z") is not None


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("keyword", "x", 1),
        ("text", "x", True),
        ("integer", 3.0, 3.5),
        ("integer", 1, 1 << 63),
        ("float", 1, "1"),
        ("float", 1.5, 10**400),
        ("bool", False, 0),
        ("datetime", "2026-01-02T03:04:05Z", "2026"),
        ("geo", {"lat": 1, "lon": 2}, {"lat": 1}),
    ],
)
def test_declared_types_are_kept_to(kind: str, good: Any, bad: Any) -> None:
    assert property_name(kind, "a") in properties_of("i", json.dumps({"a": [good]}), {"a": kind}, field="p")
    with pytest.raises(InvalidArgument) as caught:
        properties_of("i", json.dumps({"a": [good, bad]}), {"a": kind}, field="payloads[4]")
    assert caught.value.reason == "FIELD_TYPE_MISMATCH"
    assert caught.value.metadata == {"payload_field": "a", "type": kind, "field": "payloads[4]"}


@pytest.mark.parametrize("payload", ["[]", "1", "{", '{"a": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_refused(payload: str) -> None:
    with pytest.raises(InvalidArgument):
        properties_of("i", payload, {}, field="p")


# URLs


def test_urls() -> None:
    assert parse_weaviate_url("weaviate://db") == WeaviateConfig(host="db", http_port=8080, grpc_port=50051)
    assert parse_weaviate_url("weaviate://db:80/90") == WeaviateConfig(host="db", http_port=80, grpc_port=90)
    config = parse_weaviate_url(
        "weaviates://[::1]:443/?grpc_host=g&threads=3&queue=4&consistency=ALL&query_timeout_s=1.5", api_key="k"
    )
    assert config == WeaviateConfig(
        host="::1",
        http_port=443,
        grpc_host="g",
        is_secure=True,
        api_key="k",
        num_threads=3,
        max_queue=4,
        consistency="ALL",
        query_timeout_s=1.5,
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://db",
        "weaviate://",
        "weaviate://user:secret@db",
        "weaviate://db:x",
        "weaviate://db:0",
        "weaviate://db:99999",
        "weaviate://db/grpc",
        "weaviate://db/70000",
        "weaviate://db:8080/8080",
        "weaviate://db?thread=1",
        "weaviate://db?threads=many",
        "weaviate://db?threads=0",
        "weaviate://db?queue=-1",
        "weaviate://db?consistency=SOME",
        "weaviate://db?write_timeout_s=0",
        "weaviate://db?query_timeout_s=nan",
    ],
)
def test_bad_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        parse_weaviate_url(url)
    assert caught.value.reason == "SETTINGS_INVALID"
    assert "secret" not in caught.value.message


# Ranking


def hits(*pairs: tuple[str, float]) -> list[Hit]:
    return [Hit(id=point_id, score=score) for point_id, score in pairs]


def test_reciprocal_ranks() -> None:
    fused = fuse(
        hits(("a", 0.9), ("b", 0.8)),
        hits(("b", 7.0), ("c", 1.0)),
        fusion="rrf",
        dense_weight=0.5,
        rrf_k=60,
        is_less_better=False,
    )
    assert [(hit.id, hit.dense_score, hit.text_score) for hit in fused] == [
        ("b", 0.8, 7.0),
        ("a", 0.9, None),
        ("c", None, 1.0),
    ]
    assert [hit.score for hit in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


@pytest.mark.parametrize("is_less_better", [False, True])
def test_weighted_scores(is_less_better: bool) -> None:
    sign = -1.0 if is_less_better else 1.0
    fused = fuse(
        hits(("a", sign * 3.0), ("b", sign * 2.0), ("c", sign * 1.0)),
        hits(("c", 5.0)),
        fusion="weighted",
        dense_weight=0.4,
        rrf_k=60,
        is_less_better=is_less_better,
    )
    assert [(hit.id, pytest.approx(hit.score)) for hit in fused] == [("c", 0.6), ("a", 0.4), ("b", 0.2)]
    assert fuse([], [], fusion="weighted", dense_weight=1, rrf_k=1, is_less_better=False) == []


@pytest.mark.parametrize(
    ("payload", "path", "value"),
    [
        ("", "a", None),
        ('{"a": "x"}', "a", "x"),
        ('{"a": true}', "a", True),
        ('{"a": 2.0}', "a", 2),
        ('{"a": 2.5}', "a", None),
        ('{"a": null}', "a", None),
        ('{"a": {"b": 1}}', "a", None),
        ('{"a": {"b": 1}}', "a.b", 1),
        ('{"a.b": 1}', "a.b", 1),
        ('{"a": ["x", "y"]}', "a", "x"),
        ('{"a": []}', "a", None),
        ('{"a": [{}, {"b": 3}]}', "a.b", 3),
    ],
)
def test_values_that_points_are_grouped_by(payload: str, path: str, value: Any) -> None:
    found = group_value(payload, path)
    assert (found, type(found)) == (value, type(value))
