"""An OpenAPI 3.1 document of the routes, made from the same descriptors as the routes themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from vorta_gateway.json.descriptors import descriptor_of, enum_of, is_map, message_of
from vorta_gateway.json.wellknown import WRAPPERS
from vorta_gateway.rest.router import ANY_METHOD
from vorta_gateway.rest.routes import HTTP_BODY, Route, is_text_message
from vorta_gateway.rest.template import PathTemplate

__all__ = ["Comments", "comments_of", "make_openapi"]

_F = FieldDescriptor
_STATUS = "google.rpc.Status"
_MAX_QUERY_DEPTH = 2

Comments = Mapping[str, str]
"""What the proto says of a message, field, RPC or enum, by its full name."""

_INT32 = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32 = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**32 - 1}
_INT64 = {"type": ["string", "integer"], "format": "int64"}
_UINT64 = {"type": ["string", "integer"], "format": "uint64"}
_SCALARS: dict[int, dict[str, Any]] = {
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_DOUBLE: {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]},
    _F.TYPE_FLOAT: {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]},
    _F.TYPE_INT32: _INT32,
    _F.TYPE_SINT32: _INT32,
    _F.TYPE_SFIXED32: _INT32,
    _F.TYPE_UINT32: _UINT32,
    _F.TYPE_FIXED32: _UINT32,
    _F.TYPE_INT64: _INT64,
    _F.TYPE_SINT64: _INT64,
    _F.TYPE_SFIXED64: _INT64,
    _F.TYPE_UINT64: _UINT64,
    _F.TYPE_FIXED64: _UINT64,
}
_WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Empty": {"type": "object", "additionalProperties": False},
    "google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}},
    HTTP_BODY: {"type": "string", "format": "binary"},
}


def make_openapi(
    routes: Sequence[Route], *, title: str, version: str, comments: Comments | None = None
) -> dict[str, Any]:
    """The document.

    Args:
        routes: In the order in which they are to be listed. Routes of every method are left out: OpenAPI has no word
            for them.
        comments: Become descriptions.
    """
    schemas = _Schemas(comments or {})
    paths: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for route in routes:
        if route.http_method == ANY_METHOD:
            continue
        path, segments = _openapi_path(route)
        operation = _operation(route, schemas, segments)
        count = counts[operation["operationId"]] = counts.get(operation["operationId"], 0) + 1
        if count > 1:
            operation["operationId"] += str(count)
        paths.setdefault(path, {})[route.http_method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": {
                **schemas.made,
                _STATUS: {
                    "type": "object",
                    "description": "An error.",
                    "required": ["code", "message", "details"],
                    "properties": {
                        "code": {"type": "integer", "description": "A google.rpc.Code."},
                        "message": {"type": "string"},
                        "details": {"type": "array", "items": _WELL_KNOWN["google.protobuf.Any"]},
                    },
                },
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _openapi_path(route: Route) -> tuple[str, dict[str, str]]:
    """The path with its variables as OpenAPI has them; by variable, what its text must look like."""
    parsed = PathTemplate.parse(route.template)
    path = route.template
    patterns: dict[str, str] = {}
    for variable in parsed.variables:
        path = re.sub(r"\{" + re.escape(variable.field_path) + r"(=[^}]*)?\}", f"{{{variable.field_path}}}", path)
        if not variable.is_single:
            end = variable.start + variable.num_segments
            fixed = parsed.segments[variable.start : end]
            patterns[variable.field_path] = "/".join((*fixed, "**") if variable.takes_rest else fixed)
    return path, patterns


def _operation(route: Route, schemas: _Schemas, patterns: Mapping[str, str]) -> dict[str, Any]:
    method = route.method
    rpc = method.descriptor
    request = descriptor_of(method.request_type)
    summary, _, description = schemas.comment(rpc.full_name).partition("\n")
    operation: dict[str, Any] = {
        "operationId": f"{rpc.containing_service.name}_{rpc.name}",
        "tags": [rpc.containing_service.name],
        "summary": summary or rpc.name,
    }
    if description.strip():
        operation["description"] = description.strip()
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _with_pattern(schemas.comment(variable.leaf.full_name), patterns.get(name)),
            "schema": schemas.of_field(variable.leaf),
        }
        for name, variable in route.variables.items()
    ]
    if not route.is_whole_body:
        taken = {*route.variables, *([route.body.name] if route.body is not None else ())}
        parameters += _query_parameters(request, schemas, taken)
    if parameters:
        operation["parameters"] = parameters
    if route.takes_body:
        operation["requestBody"] = _request_body(route, schemas)
    operation["responses"] = _responses(route, schemas)
    return operation


def _with_pattern(comment: str, pattern: str | None) -> str:
    return comment if pattern is None else f"{comment} May hold slashes ({pattern}).".strip()


def _query_parameters(
    descriptor: Descriptor, schemas: _Schemas, taken: Iterable[str], prefix: str = "", depth: int = 0
) -> list[dict[str, Any]]:
    left_out = set(taken)
    parameters: list[dict[str, Any]] = []
    for field in descriptor.fields:
        name = prefix + field.name
        if name in left_out or is_map(field):
            continue
        message = field.message_type
        if message is not None and not is_text_message(message):
            if not field.is_repeated and message.full_name not in _WELL_KNOWN and depth < _MAX_QUERY_DEPTH:
                parameters += _query_parameters(message, schemas, left_out, name + ".", depth + 1)
            continue
        parameters.append(
            {
                "name": name,
                "in": "query",
                "description": schemas.comment(field.full_name),
                "schema": schemas.of_field(field),
            }
        )
    return parameters


def _request_body(route: Route, schemas: _Schemas) -> dict[str, Any]:
    request = descriptor_of(route.method.request_type)
    if route.body is not None:
        schema = schemas.of_field(route.body)
        if route.body.message_type is not None and route.body.message_type.full_name == HTTP_BODY:
            return {"content": {"*/*": {"schema": schema}}}
    else:
        schema = schemas.of_message(request)
    if route.method.is_client_streaming:
        return {
            "content": {
                "application/x-ndjson": {"schema": schema},
                "application/json": {"schema": {"type": "array", "items": schema}},
            }
        }
    return {"content": {"application/json": {"schema": schema}}, "required": False}


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    response = descriptor_of(route.method.response_type)
    schema = schemas.of_field(route.response_body) if route.response_body is not None else schemas.of_message(response)
    if response.full_name == HTTP_BODY:
        content: dict[str, Any] = {"*/*": {"schema": schema}}
    elif route.method.is_streaming:
        wrapped = {
            "oneOf": [
                {"type": "object", "required": ["result"], "properties": {"result": schema}},
                {"type": "object", "required": ["error"], "properties": {"error": _ref(_STATUS)}},
            ]
        }
        content = {
            "text/event-stream": {"schema": {"type": "string"}},
            "application/x-ndjson": {"schema": wrapped},
            "application/json": {"schema": {"type": "array", "items": schema}},
        }
    else:
        content = {"application/json": {"schema": schema}}
    error = {"description": "An error.", "content": {"application/json": {"schema": _ref(_STATUS)}}}
    return {"200": {"description": "The reply.", "content": content}, "default": error}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


class _Schemas:
    """Schemas of messages and enums, made as they are asked for."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments
        self.made: dict[str, Any] = {}

    def comment(self, full_name: str) -> str:
        return self._comments.get(full_name, "").strip()

    def of_message(self, descriptor: Descriptor) -> dict[str, Any]:
        name = descriptor.full_name
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if name in WRAPPERS:
            return self._scalar(descriptor.fields_by_name["value"])
        if name not in self.made:
            schema: dict[str, Any] = {"type": "object"}
            self.made[name] = schema  # before its fields: a message may hold its own kind
            if self.comment(name):
                schema["description"] = self.comment(name)
            schema["properties"] = {field.name: self._described(field) for field in descriptor.fields}
            schema["additionalProperties"] = False
        return _ref(name)

    def of_field(self, field: FieldDescriptor) -> dict[str, Any]:
        if is_map(field):
            return {"type": "object", "additionalProperties": self._single(message_of(field).fields_by_name["value"])}
        single = self._single(field)
        return {"type": "array", "items": single} if field.is_repeated else single

    def _described(self, field: FieldDescriptor) -> dict[str, Any]:
        schema = self.of_field(field)
        comment = self.comment(field.full_name)
        return {**schema, "description": comment} if comment else schema

    def _single(self, field: FieldDescriptor) -> dict[str, Any]:
        return self._scalar(field) if field.message_type is None else self.of_message(field.message_type)

    def _scalar(self, field: FieldDescriptor) -> dict[str, Any]:
        if field.type != _F.TYPE_ENUM:
            return dict(_SCALARS[field.type])
        enum = enum_of(field)
        if enum.full_name not in self.made:
            self.made[enum.full_name] = {"type": "string", "enum": [value.name for value in enum.values]}
            if self.comment(enum.full_name):
                self.made[enum.full_name]["description"] = self.comment(enum.full_name)
        return _ref(enum.full_name)


def comments_of(files: Iterable[FileDescriptorProto]) -> Comments:
    """What files say of their parts, where they kept their source's comments (protoc's --include_source_info)."""
    comments: dict[str, str] = {}
    for file in files:
        said = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
            if location.leading_comments
        }
        prefix = f"{file.package}." if file.package else ""
        for index, message in enumerate(file.message_type):
            _message_comments(comments, said, message, prefix, (4, index))
        for index, enum in enumerate(file.enum_type):
            _note(comments, said, prefix + enum.name, (5, index))
        for index, service in enumerate(file.service):
            name = prefix + service.name
            _note(comments, said, name, (6, index))
            for position, rpc in enumerate(service.method):
                _note(comments, said, f"{name}.{rpc.name}", (6, index, 2, position))
    return comments


def _message_comments(
    comments: dict[str, str],
    said: Mapping[tuple[int, ...], str],
    message: DescriptorProto,
    prefix: str,
    path: tuple[int, ...],
) -> None:
    name = prefix + message.name
    _note(comments, said, name, path)
    for index, field in enumerate(message.field):
        _note(comments, said, f"{name}.{field.name}", (*path, 2, index))
    for index, nested in enumerate(message.nested_type):
        _message_comments(comments, said, nested, f"{name}.", (*path, 3, index))


def _note(comments: dict[str, str], said: Mapping[tuple[int, ...], str], name: str, path: tuple[int, ...]) -> None:
    if path in said:
        comments[name] = "\n".join(line.removeprefix(" ") for line in said[path].splitlines()).strip()
