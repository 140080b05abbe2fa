"""Transcoding: every case of the acceptance list 34 to 75, over ASGI."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from tests.gateway.items import ItemsUpstream, Reply, ask, echo, error_of, fields_of, gateway, items_pb2
from vorta_gateway.rest.routes import RouteOptions, make_routes
from vorta_gateway.rest.template import TemplateError


async def refused(query: str, **config: Any) -> dict[str, Any]:
    return error_of(await ask(gateway(**config), "GET", f"/v1/echo?{query}"))


async def create(body: str | bytes, query: str = "", **config: Any) -> Reply:
    data = body.encode() if isinstance(body, str) else body
    return await ask(gateway(**config), "POST", f"/v1/items{query}", data, {"content-type": "application/json"})


async def created(body: str, query: str = "", **config: Any) -> Any:
    reply = await create(body, query, **config)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


# Rules at start-up


@pytest.mark.parametrize(
    "rule",
    [  # 12
        {"post": "/x", "body": "a.b"},
        {"post": "/x", "body": "nope"},
        {"get": "/x", "response_body": "nope"},
        {"get": "/x/{books}"},
        {"get": "/x/{item.m}"},
        {"get": "/x/{item}"},
        {"get": "/x/{nope}"},
        {"get": "/x/{name.deeper}"},
        {"get": "/x/"},
        {"custom": {"kind": "", "path": "/x"}},
        {},
        {"get": "/x", "additional_bindings": [{"get": "/y", "additional_bindings": [{"get": "/z"}]}]},
        {"get": "/x", "additional_bindings": [{"get": "/x"}]},
    ],
)
def test_wrong_rules_are_refused_at_start(rule: dict[str, Any]) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    items_pb2().DESCRIPTOR.CopyToProto(file)
    method = file.service[0].method[0]
    options = descriptor_pb2.MethodOptions()
    options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(**rule))
    method.options.CopyFrom(options)
    del file.service[0].method[1:]
    pool = descriptor_pool.DescriptorPool()
    for dependency in file.dependency:
        _add(pool, dependency)
    pool.AddSerializedFile(file.SerializeToString())
    with pytest.raises(TemplateError, match=r"/vorta.test.Items/Get: "):
        make_routes([pool.FindServiceByName("vorta.test.Items")])


def _add(pool: descriptor_pool.DescriptorPool, name: str) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
    for dependency in file.dependency:
        _add(pool, dependency)
    pool.AddSerializedFile(file.SerializeToString())


# Queries


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("item.title=Children", {"item": {"title": "Children"}}),  # 34
        ("item.tags=a&item.tags=b", {"item": {"tags": ["a", "b"]}}),  # 35
        ("item.es=ONE&item.es=0", {"item": {"es": ["ONE", "Z"]}}),  # 41
        ("item.ok=true", {"item": {"ok": True}}),  # 42
        ("item.ok=TRUE", {"item": {"ok": True}}),
        ("item.ok=1", {"item": {"ok": True}}),
        ("item.b=%2B%2F8%3D", {"item": {"b": "+/8="}}),  # 44
        ("item.b=-_8%3D", {"item": {"b": "+/8="}}),
        ("item.b=-_8", {"item": {"b": "+/8="}}),
        ("item.wb=true", {"item": {"wb": True}}),  # 45
        ("item.wi=7", {"item": {"wi": 7}}),
        ("item.wl=7", {"item": {"wl": "7"}}),
        ("item.wu=7", {"item": {"wu": 7}}),
        ("item.wx=7", {"item": {"wx": "7"}}),
        ("item.wf=1.5", {"item": {"wf": 1.5}}),
        ("item.wd=1.5", {"item": {"wd": 1.5}}),
        ("item.ws=text", {"item": {"ws": "text"}}),
        ("item.ws=%22text%22", {"item": {"ws": "text"}}),
        ("item.wy=-_8", {"item": {"wy": "+/8="}}),
        ("item.wi=0", {"item": {"wi": 0}}),
        ("item.ts=2021-01-01T00:00:00Z", {"item": {"ts": "2021-01-01T00:00:00Z"}}),  # 46
        ("item.ts=%222021-01-01T00:00:00Z%22", {"item": {"ts": "2021-01-01T00:00:00Z"}}),
        ("item.d=3.000000001s", {"item": {"d": "3.000000001s"}}),  # 47
        ("item.mask=title,snake_case", {"item": {"mask": "title,snakeCase"}}),  # 48
        ("item.mask=foo,bar.baz", {"item": {"mask": "foo,bar.baz"}}),
        ("item.sub.sub.tags=a&item.sub.sub.tags=b", {"item": {"sub": {"sub": {"tags": ["a", "b"]}}}}),  # 49
        ("item.snake_case=x", {"item": {"snake_case": "x"}}),  # 50
        ("item.snakeCase=x", {"item": {"snake_case": "x"}}),
        ("item.title=", {"item": {}}),  # 55, 78
        ("item.opt=", {"item": {"opt": ""}}),  # 56
        ("key=1&api_key=2", {}),  # 57
        ("item.sub.sub.title=x", {"item": {"sub": {"sub": {"title": "x"}}}}),  # 59
        ("item.title=a+b%2Bc", {"item": {"title": "a b+c"}}),
        ("item.g=1.1", {"item": {"g": 1.1}}),
        ("item.f=1e300", {"item": {"f": 1e300}}),
        ("item.f=NaN", {"item": {"f": "NaN"}}),
        ("item.n=-5&&item.u=5&", {"item": {"n": "-5", "u": "5"}}),
        ("item.e=1", {"item": {"e": "ONE"}}),
    ],
)
async def test_queries_are_bound(query: str, wanted: dict[str, Any]) -> None:
    assert await echo(query) == wanted


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("item.n=9223372036854775808", "item.n"),  # 37
        ("code=2147483648", "code"),  # 38
        ("code=abc", "code"),  # 39
        ("code=1.5", "code"),
        ("code=", "code"),
        ("item.e=one", "item.e"),  # 40
        ("item.e=BAD", "item.e"),
        ("item.g=3.5e38", "item.g"),  # 43
        ("item.f=1e999", "item.f"),
        ("item.ok=yes", "item.ok"),
        ("item.b=@@", "item.b"),
        ("item.ts=null", "item.ts"),  # 46
        ("item.ts=0000-01-01T00:00:00Z", "item.ts"),
        ("item.ts=2021-02-30T00:00:00Z", "item.ts"),
        ("item.d=1", "item.d"),
        ("item.u=1&item.u=2", "item.u"),  # 51
        ("item.u=1&item.u=1", "item.u"),
        ("item.oa=x&item.ob=1", "item.ob"),
        ("item.f.nested=x", "item.f.nested"),  # 52
        ("item.ts.seconds=1", "item.ts.seconds"),
        ("item.m[k]=v", "item.m[k]"),  # 53
        ("item.m=v", "item.m"),
        ("item.m.k=v", "item.m.k"),
        ("unknown=1", "unknown"),  # 54
        ("item.unknown=1", "item.unknown"),
        ("item=x", "item"),
        ("item.s=x", "item.s"),
        ("item.items=x", "item.items"),
        ("item.items.title=x", "item.items.title"),
    ],
)
async def test_wrong_queries_name_the_parameter(query: str, field: str) -> None:
    assert fields_of(await refused(query)) == [field]


@pytest.mark.parametrize("query", ["item.title=%", "item.title=%zz", "item.title=%C3%28", "&".join(["code=1"] * 1001)])
async def test_broken_queries(query: str) -> None:
    await refused(query)


async def test_query_depth() -> None:  # 59
    reply = await ask(gateway(), "GET", f"/v1/echo?item{'.sub' * 30}.title=x")
    assert reply.status == 200
    await refused(f"item{'.sub' * 40}.title=x")


async def test_parameters_can_be_passed_over() -> None:  # 54
    options = RouteOptions(ignored_parameters=frozenset({"unknown"}))
    assert await echo("unknown=1", routes={"": options}) == {}


async def test_query_beside_a_body() -> None:
    assert (await created('{"tags":["a","b"]}', "?item.tags=c&item.tags=d"))["item"]["tags"] == list("abcd")  # 36
    assert await created('{"id":"1"}', "?code=7") == {"item": {"id": "1"}, "code": 7}  # 60
    assert await created("{}", "?item.title=x") == {"item": {"title": "x"}}
    assert await created('{"title":"x"}', "?item.title=x") == {"item": {"title": "x"}}
    assert fields_of(error_of(await create('{"title":"y"}', "?item.title=x"))) == ["item.title"]
    assert fields_of(error_of(await create('{"oa":"y"}', "?item.ob=1"))) == ["item.ob"]


async def test_a_whole_body_takes_no_query() -> None:  # 58
    reply = await ask(gateway(), "POST", "/v1/items/abc:act?code=7", b"{}")
    assert fields_of(error_of(reply)) == ["code"]
    reply = await ask(gateway(), "POST", "/v1/items/abc:act?key=1", b'{"code":7}')
    assert json.loads(reply.body) == {"name": "abc", "code": 7}


async def test_the_path_is_not_given_twice() -> None:
    assert fields_of(error_of(await ask(gateway(), "GET", "/v1/items/abc?name=abc"))) == ["name"]


# Bodies


async def test_unknown_body_fields() -> None:  # 60
    assert fields_of(error_of(await create('{"id":"1","nope":1}'))) == ["item.nope"]
    options = RouteOptions(ignore_unknown_fields=True)
    assert await created('{"id":"1","nope":1,"sub":{"no":2}}', routes={"": options}) == {"item": {"id": "1", "sub": {}}}


async def test_path_and_body_agree() -> None:  # 61
    reply = await ask(gateway(), "PATCH", "/v1/nested/pathid", b'{"id":"other"}')
    assert fields_of(error_of(reply)) == ["item.id"]
    reply = await ask(gateway(), "PATCH", "/v1/nested/pathid", b'{"id":"pathid","title":"t"}')
    assert json.loads(reply.body) == {"item": {"id": "pathid", "title": "t"}}
    reply = await ask(gateway(), "PATCH", "/v1/nested/a%20b", b"{}")
    assert json.loads(reply.body) == {"item": {"id": "a b"}}


async def test_an_empty_body_is_an_empty_message() -> None:  # 62
    assert await created("") == {}
    assert await created(" \n") == {}


@pytest.mark.parametrize("body", ["{bad", '{"a" "b"}', '{"a":1', "{}x", "INVALID_JSON", "[]", "1", '"x"'])  # 63
async def test_bodies_that_are_not_json_objects(body: str) -> None:
    error_of(await create(body))


async def test_text() -> None:
    error_of(await create(b'{"title":"\xc3\x28"}'))  # 64
    assert (await created('{"title":"®"}'))["item"]["title"] == "®"  # 65
    assert (await created('{"title":"a","title":"b"}'))["item"]["title"] == "b"  # 66
    error_of(await create('{"title":"\\ud800"}'))


async def test_special_values() -> None:
    reply = await created('{"f":"NaN","g":"-Infinity"}')  # 67
    assert reply == {"item": {"f": "NaN", "g": "-Infinity"}}
    upstream = ItemsUpstream()
    assert (await ask(gateway(upstream), "POST", "/v1/items", b'{"f":"NaN"}')).status == 200
    assert await created('{"title":null}') == {"item": {}}  # 68
    assert math.isnan(float(reply["item"]["f"]))


@pytest.mark.parametrize("as_bytes", [False, True])
async def test_structs(as_bytes: bool) -> None:  # 69
    app = gateway(ItemsUpstream(as_bytes=as_bytes))

    def nested(levels: int) -> bytes:
        return b'{"s":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"

    reply = await ask(app, "POST", "/v1/items", nested(32))
    assert reply.status == 200
    assert json.loads(reply.body)["item"] == json.loads(nested(32))
    large = b'{"s":{"a":"' + b"x" * 40_000 + b'"}}'
    assert (await ask(app, "POST", "/v1/items", large)).status == 200
    for levels in (100, 1000, 100_000):
        error_of(await ask(app, "POST", "/v1/items", nested(levels)))
    deep = b'{"sub":' * 100 + b"{}" + b"}" * 100
    error_of(await ask(app, "POST", "/v1/items", deep))
    assert (await ask(app, "POST", "/v1/items", b"{}")).status == 200


async def test_an_http_body_takes_any_bytes() -> None:  # 70
    reply = await ask(
        gateway(), "POST", "/v1/message.txt:upload?code=3", b"hello", {"content-type": "text/plain; charset=utf-8"}
    )
    assert json.loads(reply.body) == {
        "name": "message.txt",
        "code": 3,
        "file": {"content_type": "text/plain; charset=utf-8", "data": base64.b64encode(b"hello").decode()},
    }


async def test_a_repeated_field_as_a_body() -> None:
    reply = await ask(gateway(), "POST", "/v1/shelves/1/books:move", b'["a","b"]')
    assert json.loads(reply.body) == {"name": "shelves/1", "books": ["a", "b"]}
    assert fields_of(error_of(await ask(gateway(), "POST", "/v1/shelves/1/books:move", b'["a",1]'))) == ["books[1]"]


@pytest.mark.parametrize("kind", ["text/xml", "application/x-www-form-urlencoded", "application/octet-stream"])
async def test_media_types_that_are_not_read(kind: str) -> None:  # 71, 75
    error_of(await ask(gateway(), "POST", "/v1/items", b"title=x", {"content-type": kind}), 415)


@pytest.mark.parametrize(
    "kind", ["application/json; charset=UTF-8", "application/json;charset=utf-8", "APPLICATION/JSON", "a/b+json"]
)
async def test_media_types_of_json(kind: str) -> None:  # 72
    assert (await ask(gateway(), "POST", "/v1/items", b"{}", {"content-type": kind})).status == 200


async def test_forms_by_option() -> None:  # 75
    app = gateway(routes={"": RouteOptions(form_bodies=True)})
    form = {"content-type": "application/x-www-form-urlencoded"}
    reply = await ask(app, "POST", "/v1/items", b"title=a+b&tags=1&tags=2", form)
    assert json.loads(reply.body) == {"item": {"title": "a b", "tags": ["1", "2"]}}


async def test_bodies_over_the_limit() -> None:  # 73
    upstream = ItemsUpstream()
    app = gateway(upstream, max_body_bytes=100)
    for headers in ({}, {"content-length": "101"}):
        reply = await ask(app, "POST", "/v1/items", [b"x" * 60, b"x" * 60], {"content-type": "a/json", **headers})
        error_of(reply, 413, 8)
    bomb = gzip.compress(b" " * 5_000)
    assert len(bomb) < 100
    error_of(await ask(app, "POST", "/v1/items", bomb, {"content-encoding": "gzip"}), 413, 8)
    assert upstream.calls == []


async def test_encoded_bodies() -> None:
    body = gzip.compress(b'{"title":"x"}')
    reply = await ask(gateway(), "POST", "/v1/items", body, {"content-encoding": "gzip"})
    assert json.loads(reply.body) == {"item": {"title": "x"}}
    error_of(await ask(gateway(), "POST", "/v1/items", body, {"content-encoding": "br"}), 415)
    error_of(await ask(gateway(), "POST", "/v1/items", b"no gzip", {"content-encoding": "gzip"}))
    error_of(await ask(gateway(), "POST", "/v1/items", body[:-9], {"content-encoding": "gzip"}))


async def test_a_body_where_none_is_taken() -> None:  # 74
    reply = await ask(gateway(), "GET", "/v1/echo", b'{"name":"x"}')
    assert fields_of(error_of(reply)) == ["body"]
