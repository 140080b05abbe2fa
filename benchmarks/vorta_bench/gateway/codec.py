"""JSON to and from messages, over `google.protobuf.json_format`."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf import json_format, struct_pb2

from vorta.v1 import embedding_pb2, inference_pb2
from vorta_gateway.json import native
from vorta_gateway.json.codec import Codec

__all__ = ["codec"]


def codec(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """CPU microseconds both ways, and the ratios."""
    native.load()  # waits until it is built
    request = inference_pb2.GenerateRequest(
        model="vorta-mini", prompt="What is machine learning?", max_tokens=100, temperature=0.7, top_p=0.9, seed=3
    )
    request.stop.extend(["\n\n", "END"])
    source = random.Random(1)
    reply = embedding_pb2.EmbedResponse(model="all-MiniLM-L6-v2", dimensions=384)
    for index in range(32):
        values = [source.uniform(-0.2, 0.2) for _ in range(384)]
        reply.embeddings.add(index=index, values=values, num_tokens=12)
    struct = struct_pb2.Struct()
    struct.update(_nested(4))
    rows = []
    for name, message in (("GenerateRequest", request), ("EmbedResponse 32 x 384", reply), ("Struct, nested", struct)):
        kind: Any = type(message)
        ours = Codec()
        text = ours.text(message)
        theirs = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
        assert json.loads(text) == json.loads(theirs)
        measures: dict[str, Callable[[], object]] = {
            "write": partial(ours.text, message),
            "write, json_format": partial(
                json_format.MessageToJson, message, preserving_proto_field_name=True, indent=None
            ),
            "read": partial(_read, ours, kind, text),
            "read, json_format": partial(_read_json_format, kind, theirs),
        }
        times: dict[str, list[float]] = {key: [] for key in measures}
        count = 5 if len(text) > 50_000 else 200
        for _ in range(arguments.rounds):
            for key, function in measures.items():
                times[key].append(_seconds(function, count))
        medians = {key: statistics.median(values) for key, values in times.items()}
        row = {"message": name, "bytes": len(text)}
        for way in ("write", "read"):
            row[f"{way}_us"] = round(medians[way] * 1e6, 1)
            row[f"{way}_json_format_us"] = round(medians[f"{way}, json_format"] * 1e6, 1)
            row[f"{way}_times"] = round(medians[f"{way}, json_format"] / medians[way], 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def _read(codec: Codec, kind: Any, text: bytes) -> None:
    codec.parse(kind(), text)


def _read_json_format(kind: Any, text: str) -> None:
    json_format.Parse(text, kind())


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": "x",
        "number": 1.5,
        "ok": True,
        "none": None,
        "list": [1, 2, "three", {"a": [1, 2]}],
    }
    return {**value, "one": _nested(depth - 1), "two": _nested(depth - 1)} if depth else value


def _seconds(function: Callable[[], object], count: int) -> float:
    # Of this thread's CPU: what else runs on the machine would interrupt the longer of two measures more often.
    start_s = time.thread_time()
    for _ in range(count):
        function()
    return (time.thread_time() - start_s) / count
