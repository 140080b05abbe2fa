"""From a method and a path to what answers them.

Templates are a tree of segments. At each segment a literal goes before `*`, and `*` before `**`; where the better one
leads nowhere, the next is tried. A node is visited at most once a request, so a request costs no more than the tree is
large, however many slashes it has. Verbs are tried first, the longest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vorta_gateway.rest.template import (
    ANY,
    REST,
    PathTemplate,
    TemplateError,
    Variable,
    decode_all,
    decode_but_slashes,
)

__all__ = ["ANY_METHOD", "Match", "MethodNotAllowed", "NoRoute", "Router"]

ANY_METHOD = "*"
"""The method of a custom rule that takes every method."""

T = TypeVar("T")

# One path may be written in many ways, and a custom rule take any method: only so many are remembered.
_MAX_FOUND = 1024


class NoRoute(LookupError):
    """No template matches the path."""


class MethodNotAllowed(LookupError):
    """Templates match the path, but not this method.

    Attributes:
        allowed: The methods that they take, sorted.
    """

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(f"the methods here are {', '.join(allowed)}")
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """What answers, and the variables' values, by field path."""

    value: T
    bindings: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    variables: tuple[Variable, ...]
    template: str
    is_literal: bool  # the template is the path


@dataclass(slots=True)
class _Node(Generic[T]):
    literals: dict[str, _Node[T]] = field(default_factory=dict)
    any_child: _Node[T] | None = None
    rest: dict[str, _Entry[T]] = field(default_factory=dict)
    entries: dict[str, _Entry[T]] = field(default_factory=dict)


class Router(Generic[T]):
    """Routes by template. Filled at start-up, then only read."""

    def __init__(self) -> None:
        self._trees: dict[str, _Node[T]] = {}
        self._verbs: list[str] = []
        self._found: dict[tuple[str, str], Match[T]] = {}  # by method and path, of templates that are paths

    def add(self, method: str, template: str, value: T) -> None:
        """Adds a route. Raises TemplateError when the template is wrong, or was added for this method."""
        parsed = PathTemplate.parse(template)
        if parsed.verb not in self._trees:
            self._trees[parsed.verb] = _Node()
            if parsed.verb:
                self._verbs = sorted((*self._verbs, parsed.verb), key=len, reverse=True)
        node = self._trees[parsed.verb]
        entries = node.entries
        for segment in parsed.segments:
            if segment == REST:
                entries = node.rest
                break
            if segment == ANY:
                if node.any_child is None:
                    node.any_child = _Node()
                node = node.any_child
            else:
                node = node.literals.setdefault(segment, _Node())
            entries = node.entries
        is_literal = ANY not in parsed.segments and REST not in parsed.segments
        if method in entries:
            raise TemplateError(f"{method} {template} is the same route as {method} {entries[method].template}")
        entries[method] = _Entry(value, parsed.variables, template, is_literal)
        self._found.clear()

    def match(self, method: str, path: str) -> Match[T]:
        """What answers a request. `path` is as it was sent, without the query.

        Raises NoRoute, MethodNotAllowed, or ValueError when the path cannot be decoded.
        """
        known = self._found.get((method, path))
        if known is not None:
            return known
        entry, segments = self._search(method, path)
        found = Match(entry.value, tuple(_bind(entry.variables, segments)))
        if entry.is_literal and len(self._found) < _MAX_FOUND:
            self._found[method, path] = found
        return found

    def _search(self, method: str, path: str) -> tuple[_Entry[T], list[str]]:
        if not path.startswith("/"):
            raise NoRoute(path)
        segments = path[1:].split("/")
        allowed: set[str] = set()
        last = segments[-1]
        if ":" in last:
            for verb in self._verbs:
                if last.endswith(":" + verb):
                    stripped = last[: -len(verb) - 1]
                    # "/a:v" has the one segment "a"; "/:v" has none.
                    shorter = [*segments[:-1], stripped] if stripped or len(segments) > 1 else []
                    found = self._find(self._trees[verb], shorter, method, allowed)
                    if found is not None:
                        return found, shorter
        tree = self._trees.get("")
        if tree is not None:
            found = self._find(tree, segments, method, allowed)
            if found is not None:
                return found, segments
        if allowed:
            raise MethodNotAllowed(sorted(allowed))
        raise NoRoute(path)

    def _find(self, tree: _Node[T], segments: list[str], method: str, allowed: set[str]) -> _Entry[T] | None:
        for entries in _candidates(tree, segments):
            entry = entries.get(method) or entries.get(ANY_METHOD)
            if entry is not None:
                return entry
            allowed.update(entries)
        return None


def _candidates(tree: _Node[T], segments: list[str]) -> Iterator[dict[str, _Entry[T]]]:
    """What matches the segments, the best first."""
    stack: list[tuple[_Node[T], int, bool]] = [(tree, 0, False)]
    while stack:
        node, index, is_rest = stack.pop()
        if is_rest:
            yield node.rest
            continue
        # Pushed in the order of rising precedence: the last one is looked at first.
        if node.rest:
            stack.append((node, index, True))
        if index == len(segments):
            if node.entries:
                yield node.entries
            continue
        segment = segments[index]
        if node.any_child is not None and segment:
            stack.append((node.any_child, index + 1, False))
        literal = node.literals.get(decode_all(segment) if "%" in segment else segment)
        if literal is not None:
            stack.append((literal, index + 1, False))


def _bind(variables: tuple[Variable, ...], segments: list[str]) -> Iterator[tuple[str, str]]:
    for variable in variables:
        if variable.is_single:
            yield variable.field_path, decode_all(segments[variable.start])
        else:
            end = None if variable.takes_rest else variable.start + variable.num_segments
            yield variable.field_path, decode_but_slashes("/".join(segments[variable.start : end]))
