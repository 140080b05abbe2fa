"""Sampling options: one flag per field of the request, read from the contract."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from vorta._output_format import FORMAT_KEYWORDS
from vorta._request import keywords_of
from vorta.errors import InvalidArgument
from vorta.v1 import inference_pb2

__all__ = ["add_sampling", "sampling_of"]

_HELP = {
    "max_tokens": "most tokens to generate",
    "min_tokens": "tokens before the text may end",
    "temperature": "0 is greedy; higher is more random",
    "top_p": "keep the likeliest tokens up to this probability",
    "top_k": "keep this many likeliest tokens",
    "min_p": "drop tokens less likely than this share of the likeliest",
    "presence_penalty": "lower every token already generated, once",
    "frequency_penalty": "lower a token by each time it was generated",
    "repetition_penalty": "lower tokens of prompt and text; 1 changes nothing",
    "logit_bias": "add to a token's logit; may be repeated",
    "seed": "equal seeds draw equally",
    "stop": "end the text at this string; may be repeated",
    "stop_token_ids": "end the text at this token; may be repeated",
    "include_stop": "keep the stop string in the text",
    "ignore_eos": "go on after an end-of-sequence token",
    "n": "independent sequences",
    "logprobs": "log probabilities, with this many alternatives",
    "prompt_logprobs": "the same for the prompt",
    "echo": "begin the text with the prompt",
    "priority": "lower is sooner",
    "deterministic": "the same tokens whatever the load",
    "skip_special_tokens": "leave special tokens out of the text",
    "request_id": "the request's own id",
}

_INTEGERS = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)


def add_sampling(parser: argparse.ArgumentParser, request_type: type[Message] = inference_pb2.GenerateRequest) -> None:
    """Adds a flag for each sampling field of the request; absent flags leave the server's defaults."""
    group = parser.add_argument_group("sampling (the server's defaults where absent)")
    fields = inference_pb2.GenerateRequest.DESCRIPTOR.fields_by_name
    for name in _names(request_type):
        options: dict[str, Any] = {"dest": name, "help": _HELP.get(name, ""), "default": None}
        field = fields[name]
        if name == "logit_bias":
            options |= {"action": "append", "type": _bias, "metavar": "TOKEN=BIAS"}
        elif field.type == FieldDescriptor.TYPE_BOOL:
            options |= {"action": argparse.BooleanOptionalAction}
        else:
            is_integer = field.type in _INTEGERS
            is_text = field.type == FieldDescriptor.TYPE_STRING
            options |= {"type": int if is_integer else str if is_text else float}
            options |= {"metavar": "N" if is_integer else "TEXT" if is_text else "X"}
            if field.is_repeated:
                options |= {"action": "append"}
        flag = "--stop-token-id" if name == "stop_token_ids" else f"--{name.replace('_', '-')}"
        group.add_argument(flag, **options)
    _add_format(parser)


def sampling_of(
    arguments: argparse.Namespace, request_type: type[Message] = inference_pb2.GenerateRequest
) -> dict[str, Any]:
    """The keywords that were given."""
    values = {name: getattr(arguments, name) for name in _names(request_type)}
    if values["logit_bias"] is not None:
        values["logit_bias"] = dict(values["logit_bias"])
    values |= {name: getattr(arguments, name) for name in ("json_object", "regex", "choice")}
    for name in ("json_schema", "grammar"):
        path = getattr(arguments, name)
        values[name] = None if path is None else _read(path, name)
    return {name: value for name, value in values.items() if value is not None}


def _names(request_type: type[Message]) -> list[str]:
    """The sampling fields of a request: those that GenerateRequest has too."""
    known = request_type.DESCRIPTOR.fields_by_name
    return [
        name for name in keywords_of(inference_pb2.GenerateRequest) if name in known and name not in FORMAT_KEYWORDS
    ]


def _add_format(parser: argparse.ArgumentParser) -> None:
    """The flags that say what the text must be; one at most."""
    group = parser.add_argument_group("what the text must be (one at most)").add_mutually_exclusive_group()
    group.add_argument("--json-object", action="store_true", default=None, help="a JSON object")
    group.add_argument("--json-schema", type=Path, metavar="FILE", help="JSON of the schema in this file")
    group.add_argument("--regex", metavar="REGEX", help="a match of this regular expression")
    group.add_argument("--choice", action="append", metavar="TEXT", help="one of these texts; may be repeated")
    group.add_argument("--grammar", type=Path, metavar="FILE", help="of the grammar in this file, Lark or GBNF")


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise InvalidArgument(f"cannot read the {name} from {path}: {exc}", field=name) from None


def _bias(text: str) -> tuple[int, float]:
    token, separator, bias = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form TOKEN=BIAS")
    return int(token), float(bias)
