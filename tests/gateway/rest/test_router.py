"""Path templates and their matching: every case of the acceptance list, 1 to 33."""

from __future__ import annotations

import pytest

from vorta_gateway.rest.router import ANY_METHOD, MethodNotAllowed, NoRoute, Router
from vorta_gateway.rest.template import PathTemplate, TemplateError


def router(*templates: str, method: str = "GET") -> Router[str]:
    made: Router[str] = Router()
    for template in templates:
        made.add(method, template, template)
    return made


def found(made: Router[str], path: str, method: str = "GET") -> tuple[str, dict[str, str]]:
    match = made.match(method, path)
    return match.value, dict(match.bindings)


@pytest.mark.parametrize(
    "template",
    [
        *("/{1}", "/{field.1}", "/{-}", "/{field-}"),  # 1
        "/foo/bar?x=y",  # 3
        "foo/bar",  # 4
        "/foo/bar/",  # 5
        "/foo/bar:baz/buzz",  # 6
        *("/foo/bar*", "/foo/***"),  # 7
        "/foo/**/bar",  # 8
        "/{a}/{a}",  # 9
        *("/a/**/*", "/a/**/**", "/a{x=b/**}/{y=*}", "/a/{x=b/**}/{y=*}"),  # 10
        *("", "/", "/a//b", "/{", "/{a", "/{a=}", "/{a={b}}", "/{a=b/{c}}", "/a:", "/a b", "/%zz", "/{a}b", "/a}"),
    ],
)
def test_wrong_templates_are_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        PathTemplate.parse(template)


def test_a_template_has_segments_variables_and_a_verb() -> None:
    assert PathTemplate.parse("/{_}").variables[0].field_path == "_"  # 2
    parsed = PathTemplate.parse("/v1/{a.b=x/*}/%41/{rest=y/**}:do:it")
    assert parsed.segments == ("v1", "x", "*", "A", "y", "**")
    assert parsed.verb == "do:it"
    a, rest = parsed.variables
    assert (a.field_path, a.start, a.num_segments, a.takes_rest, a.is_single) == ("a.b", 1, 2, False, False)
    assert (rest.field_path, rest.start, rest.num_segments, rest.takes_rest) == ("rest", 4, 1, True)


def test_the_same_route_twice_is_refused() -> None:  # 11
    made = router("/a/{x}", "/a/**", "/a/b:v")
    for template in ("/a/{y}", "/a/{z=**}", "/a/b:v"):
        with pytest.raises(TemplateError, match="same route"):
            made.add("GET", template, "again")
    made.add("POST", "/a/{y}", "another method")


@pytest.mark.parametrize(
    ("templates", "path", "wanted", "bindings"),
    [
        (("/{x=a/*}/b/{y=*}/c",), "/a/hello/b/world/c", 0, {"x": "a/hello", "y": "world"}),  # 13
        (("/a/{x=b/*}/{y=d/**}",), "/a/b/zoo/d/animal/tiger", 0, {"x": "b/zoo", "y": "d/animal/tiger"}),  # 14
        (("/{x=*}/d/e/f/{y=**}",), "/foo/d/e/f/bar/baz", 0, {"x": "foo", "y": "bar/baz"}),  # 15
        (("/c/f/d/e", "/c/*/d/e", "/c/*/d/**"), "/c/f/d/e", 0, {}),  # 17
        (("/c/f/d/e", "/c/*/d/e", "/c/*/d/**"), "/c/x/d/e", 1, {}),
        (("/c/f/d/e", "/c/*/d/e", "/c/*/d/**"), "/c/x/d/y/z", 2, {}),
        (("/c/f/d/e", "/c/*/d/e", "/c/*/d/**"), "/c/f/d/other", 2, {}),  # back from the literal
        (("/{a=*}/{b=*}:verb",), "/some:verb/const:verb", 0, {"a": "some:verb", "b": "const"}),  # 19
        (("/foo/{a=*}",), "/foo/other:verb", 0, {"a": "other:verb"}),  # 20
        (("/foo/*/hello",), "/foo/other:verb/hello", 0, {}),  # 21
        (("/foo/{id}", "/foo/{id}:verb:subverb"), "/foo/bar:verb:subverb", 1, {"id": "bar"}),  # 22
        (("/foo/{id}:subverb", "/foo/{id}:verb:subverb"), "/foo/bar:verb:subverb", 1, {"id": "bar"}),
        (("/foo/{id}", "/bar/{id}:verb"), "/foo/bar:verb", 0, {"id": "bar:verb"}),
        (("/trailing/**:slash",), "/trailing/:slash", 0, {}),  # 24
        (("/trailing/**:slash",), "/trailing:slash", 0, {}),
        (("/v1/files/{name=**}:read",), "/v1/files:read", 0, {"name": ""}),  # 25
        (("/{rest=**}",), "/a//b/", 0, {"rest": "a//b/"}),
        (("/a/{x=p/*/q/*}/c",), "/a/p/foo%20foo/q/bar%2Fbar/c", 0, {"x": "p/foo foo/q/bar%2Fbar"}),  # 28
        (("/{x}",), "/foo%252Fbar", 0, {"x": "foo%2Fbar"}),  # 30
        (  # 31
            ("/a/{x=*}/{y=**}",),
            "/a/%21%23%2C%2F%3A%40/%21%23%2C%2F%3A%40",
            0,
            {"x": "!#,/:@", "y": "!#,%2F:@"},
        ),
        (("/foo/{id}/bar",), "/foo/success%2fwith%2Fspace/bar", 0, {"id": "success/with/space"}),  # 33
        (("/{x}",), "/a+b", 0, {"x": "a+b"}),
        (("/caf%C3%A9",), "/caf%c3%a9", 0, {}),
    ],
)
def test_the_best_template_matches(
    templates: tuple[str, ...], path: str, wanted: int, bindings: dict[str, str]
) -> None:
    assert found(router(*templates), path) == (templates[wanted], bindings)
    assert found(router(*reversed(templates)), path) == (templates[wanted], bindings)


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/b/*", "/b/c/d"),  # 16
        ("/c/*/d/**", "/c//v/d/w/x"),
        ("/c/*/d/**", "/c//d/x"),
        ("/a/b", "/a/b/c/d"),  # 18
        ("/a/b/c/d", "/a/b/c"),
        ("/verb", "/verb:"),  # 23
        ("/a", "/a/"),
        ("/a", "a"),
        ("/a:v", "/a"),
        ("/{a}:v", "/:v"),
    ],
)
def test_nothing_matches(template: str, path: str) -> None:
    with pytest.raises(NoRoute):
        router(template).match("GET", path)


def test_a_long_path_takes_linear_time() -> None:  # 26
    made = router("/a/{x=**}", "/a/{x=**}:v", "/a/*/*/*/*/*/*/*/{x=**}")
    slashes = "/" * 64_000
    assert found(made, f"/a/{slashes}y")[1]["x"] == slashes + "y"
    assert found(made, f"/a/{slashes}y:v")[0] == "/a/{x=**}:v"


def test_many_methods_below_one_prefix() -> None:  # 27
    templates = [f"/v1/prefix/{number}/{{id}}" for number in range(60)]
    made = router(*templates)
    for template in templates:
        assert found(made, template.replace("{id}", "x")) == (template, {"id": "x"})


def test_every_ascii_character_is_decoded() -> None:  # 29
    made = router("/{x}")
    for code in range(0x7F):
        for text in (f"%{code:02x}", f"%{code:02X}"):
            assert found(made, f"/{text}")[1] == {"x": chr(code)}


@pytest.mark.parametrize("path", ["/%", "/%zz", "/%1", "/%C3%28"])  # 32
def test_broken_escapes(path: str) -> None:
    with pytest.raises(ValueError, match=r"%|utf-8"):
        router("/{x}").match("GET", path)


def test_another_method_is_told_which_there_are() -> None:
    made = router("/a/{x}")
    made.add("POST", "/a/b", "post")
    made.add("PUT", "/a/**", "put")
    with pytest.raises(MethodNotAllowed) as caught:
        made.match("DELETE", "/a/b")
    assert caught.value.allowed == ["GET", "POST", "PUT"]
    assert found(made, "/a/b", "PUT")[0] == "put"  # a template of lower rank that takes the method
    made.add(ANY_METHOD, "/any", "any")
    assert found(made, "/any", "PROPFIND")[0] == "any"
