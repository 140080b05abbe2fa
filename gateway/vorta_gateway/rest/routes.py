"""The routes that google.api.http rules make of RPCs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from vorta_gateway.json.descriptors import descriptor_of
from vorta_gateway.json.wellknown import WRAPPERS
from vorta_gateway.rest.router import ANY_METHOD, Router
from vorta_gateway.rest.template import PathTemplate, TemplateError
from vorta_gateway.upstream import RpcMethod

__all__ = ["DEFAULT_IGNORED", "HTTP_BODY", "Route", "RouteOptions", "TextField", "is_text_message", "make_routes"]

HTTP_BODY = "google.api.HttpBody"

DEFAULT_IGNORED = frozenset({"key", "api_key", "alt", "$fields"})
"""Query parameters that belong to a proxy or to a client's habits, and are not bound."""

# Well-known messages that are one text in a query.
_TEXT_MESSAGES = WRAPPERS | {
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "google.protobuf.FieldMask",
}


def is_text_message(descriptor: Descriptor) -> bool:
    """Whether a message can be written as one text, as in a query."""
    return descriptor.full_name in _TEXT_MESSAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """What can be chosen for a route.

    Attributes:
        ignored_parameters: Query parameters that are passed over.
        ignore_unknown_fields: Unknown fields of a body are passed over rather than refused.
        always_print: Replies have fields at their defaults too.
        camel_case: Replies have lowerCamelCase names.
        enum_numbers: Replies have enums as numbers.
        form_bodies: Bodies of application/x-www-form-urlencoded are taken, bound like a query.
    """

    ignored_parameters: frozenset[str] = DEFAULT_IGNORED
    ignore_unknown_fields: bool = False
    always_print: bool = False
    camel_case: bool = False
    enum_numbers: bool = False
    form_bodies: bool = False


@dataclass(frozen=True, slots=True)
class TextField:
    """A field somewhere in a message that is set from a text: the way to it, from the message on."""

    path: str
    fields: tuple[FieldDescriptor, ...]

    @property
    def leaf(self) -> FieldDescriptor:
        """The field itself."""
        return self.fields[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule of one RPC.

    Attributes:
        method: The RPC.
        http_method: Upper case; `ANY_METHOD` for a custom rule of every method.
        template: As it stands in the rule.
        body: The field that the body is, or None.
        is_whole_body: Whether the body is the whole message.
        response_body: The field that the reply is, or None for the whole message.
        is_raw: Whether replies are an HttpBody: bytes, and their type.
        variables: The template's, by their path.
        options: What was chosen for it.
    """

    method: RpcMethod
    http_method: str
    template: str
    body: FieldDescriptor | None
    is_whole_body: bool
    response_body: FieldDescriptor | None
    is_raw: bool = False
    variables: Mapping[str, TextField] = field(default_factory=dict)
    options: RouteOptions = field(default_factory=RouteOptions)

    @property
    def takes_body(self) -> bool:
        """Whether requests have a body."""
        return self.is_whole_body or self.body is not None


def make_routes(
    services: Iterable[ServiceDescriptor], options: Mapping[str, RouteOptions] | None = None
) -> tuple[Router[Route], list[Route]]:
    """The routes of the services' RPCs, as a router and as a list in the services' order.

    Args:
        services: Their RPCs' options have the rules; RPCs without a rule have no route.
        options: By full RPC path or service name; "" for all others.

    Raises:
        TemplateError: A rule is wrong, or two are the same route.
    """
    chosen = options or {}
    router: Router[Route] = Router()
    routes: list[Route] = []
    for service in services:
        for rpc in service.methods:
            rule = _rule(rpc.GetOptions().SerializeToString())
            if rule is None:
                continue
            method = RpcMethod.of(rpc)
            picked = chosen.get(method.path) or chosen.get(service.full_name) or chosen.get("") or RouteOptions()
            for binding in (rule, *rule.additional_bindings):
                if binding is not rule and binding.additional_bindings:
                    raise TemplateError(f"{method.path}: additional_bindings inside additional_bindings")
                try:
                    route = _route(method, binding, picked)
                    router.add(route.http_method, route.template, route)
                except TemplateError as error:
                    raise TemplateError(f"{method.path}: {error}") from None
                routes.append(route)
    return router, routes


def _rule(options: bytes) -> http_pb2.HttpRule | None:
    # Parsed anew: descriptors that came by reflection know the extension only as unknown bytes.
    parsed = MethodOptions.FromString(options)
    if not parsed.HasExtension(annotations_pb2.http):
        return None
    rule: http_pb2.HttpRule = parsed.Extensions[annotations_pb2.http]
    return rule


def _route(method: RpcMethod, rule: http_pb2.HttpRule, options: RouteOptions) -> Route:
    kind = rule.WhichOneof("pattern")
    if kind is None:
        raise TemplateError("the rule has no pattern")
    if kind == "custom":
        http_method, template = rule.custom.kind.upper(), rule.custom.path
        if not http_method:
            raise TemplateError("custom: the kind is missing")
    else:
        http_method, template = kind.upper(), getattr(rule, kind)
    parsed = PathTemplate.parse(template)
    request = descriptor_of(method.request_type)
    body = None
    if rule.body and rule.body != "*":
        body = _top_level(request, rule.body, "body")
    response_body = None
    if rule.response_body:
        response_body = _top_level(descriptor_of(method.response_type), rule.response_body, "response_body")
    replied = descriptor_of(method.response_type) if response_body is None else response_body.message_type
    is_list = response_body is not None and response_body.is_repeated
    return Route(
        method=method,
        http_method=ANY_METHOD if http_method == "*" else http_method,
        template=template,
        body=body,
        is_whole_body=rule.body == "*",
        response_body=response_body,
        is_raw=replied is not None and replied.full_name == HTTP_BODY and not is_list,
        variables={variable.field_path: _variable(request, variable.field_path) for variable in parsed.variables},
        options=options,
    )


def _top_level(descriptor: Descriptor, name: str, what: str) -> FieldDescriptor:
    found = descriptor.fields_by_name.get(name)
    if found is None:
        raise TemplateError(f"{what}: {descriptor.full_name} has no field {name!r}")
    return found


def _variable(descriptor: Descriptor, path: str) -> TextField:
    fields: list[FieldDescriptor] = []
    message: Descriptor | None = descriptor
    for name in path.split("."):
        found = message.fields_by_name.get(name) if message is not None else None
        if found is None:
            raise TemplateError(f"{descriptor.full_name} has no field {path!r}")
        if found.is_repeated:
            raise TemplateError(f"{path}: a repeated field or a map cannot stand in a path")
        fields.append(found)
        message = found.message_type
    if message is not None and not is_text_message(message):
        raise TemplateError(f"{path}: a message cannot stand in a path")
    return TextField(path, tuple(fields))
