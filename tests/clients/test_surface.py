"""What `import vorta` offers, and what it does not load."""

from __future__ import annotations

import enum
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
from google.protobuf.message import Message

import vorta
from vorta import answer_result, embedding_result, options, result, sampling, vector_result, wire
from vorta._method import ADMIN, EMBEDDING, INFERENCE, VECTOR
from vorta._output_format import FORMAT_FIELD, FORMAT_KEYWORDS
from vorta._request import keywords_of
from vorta.v1 import admin_pb2, common_pb2, embedding_pb2, errors_pb2, inference_pb2, vector_pb2

ROOT = Path(vorta.__file__).parent.parent

HEAVY = ("numpy", "pydantic", "onnxruntime", "vorta_server", "tqdm", "shtab", "argparse", "msgspec")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_is_light() -> None:
    loaded = modules_after("import vorta; [getattr(vorta, name) for name in vorta.__all__]")
    assert not loaded & set(HEAVY)
    assert {"grpc", "google.protobuf"} <= loaded


def test_errors_load_no_grpc() -> None:
    loaded = modules_after("import vorta.errors")
    assert not {name for name in loaded if name.startswith(("grpc", "google"))}


def test_all_names_are_there() -> None:
    assert len(set(vorta.__all__)) == len(vorta.__all__)
    for name in vorta.__all__:
        assert getattr(vorta, name) is not None
        assert name in dir(vorta)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vorta.no_such_name


@pytest.mark.parametrize("module", [result, answer_result, embedding_result, vector_result, options])
def test_every_public_value_of_results_is_exported(module: ModuleType) -> None:
    assert set(module.__all__) <= set(vorta.__all__)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isclass(value) and value.__module__ == module.__name__
    }
    assert public | ({"Event", "AnswerEvent"} & set(module.__all__)) == set(module.__all__)


@pytest.mark.parametrize(
    "module",
    [
        "answer_result",
        "answer_stream",
        "async_answer_stream",
        "async_client",
        "async_collection",
        "async_result_stream",
        "async_stream",
        "client",
        "collection",
        "embedding_result",
        "errors",
        "filters",
        "inference_client",
        "options",
        "result",
        "result_stream",
        "retry",
        "sampling",
        "stream",
        "vector_result",
        "wire",
    ],
)
def test_every_public_name_has_a_docstring(module: str) -> None:
    loaded = __import__(f"vorta.{module}", fromlist=["x"])
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
            for member, function in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(function) and not member.startswith("_"):
                    assert function.__doc__, f"{name}.{member}"


@pytest.mark.parametrize("request_name", ["GenerateRequest", "StreamGenerateRequest"])
def test_sampling_has_every_field_of_the_contract(request_name: str) -> None:
    assert set(keywords_of(getattr(inference_pb2, request_name))) == set(sampling.Sampling.__annotations__)


@pytest.mark.parametrize("request_name", ["ChatRequest", "StreamChatRequest"])
def test_chat_has_every_field_of_the_contract(request_name: str) -> None:
    own = {"add_generation_prompt", "continue_final_message", "tool_choice"}
    assert set(keywords_of(getattr(inference_pb2, request_name))) == own | set(sampling.Sampling.__annotations__)


@pytest.mark.parametrize(
    ("keywords", "request_type", "own"),
    [
        (options.EmbedOptions, embedding_pb2.EmbedRequest, "model inputs encoding"),
        (options.EmbedOptions, embedding_pb2.EmbedOptions, "encoding"),
        (options.RerankOptions, embedding_pb2.RerankRequest, "model query documents"),
        (options.RerankOptions, embedding_pb2.StreamRerankRequest, "model query documents"),
        (options.SearchOptions, vector_pb2.SearchRequest, "collection vector vector_packed text id compact"),
        (options.SearchOptions, vector_pb2.BatchSearchRequest, "collection queries compact"),
        (options.HybridSearchOptions, vector_pb2.HybridSearchRequest, "collection text vector vector_packed compact"),
        (options.AnswerOptions, inference_pb2.StreamAnswerRequest, "model question collection"),
    ],
)
def test_options_have_every_field_of_the_contract(keywords: type, request_type: type[Message], own: str) -> None:
    fields = {field.name for field in request_type.DESCRIPTOR.fields}
    if FORMAT_FIELD in fields:
        fields = fields - {FORMAT_FIELD} | set(FORMAT_KEYWORDS)
    assert set(get_type_hints(keywords)) == fields - set(own.split())
    assert set(own.split()) <= fields


@pytest.mark.parametrize(
    ("python", "proto", "prefix"),
    [
        (result.FinishReason, common_pb2.FinishReason, "FINISH_REASON_"),
        (result.ModelState, admin_pb2.ModelState, "MODEL_STATE_"),
        (result.ModelKind, admin_pb2.ModelKind, "MODEL_KIND_"),
        (vector_result.Distance, vector_pb2.Distance, "DISTANCE_"),
        (vector_result.IndexKind, vector_pb2.IndexKind, "INDEX_KIND_"),
        (vector_result.FieldType, vector_pb2.FieldType, "FIELD_TYPE_"),
        (vector_result.Fusion, vector_pb2.Fusion, "FUSION_"),
    ],
)
def test_enums_have_every_value_of_the_contract(python: type[enum.StrEnum], proto: object, prefix: str) -> None:
    names = {name.removeprefix(prefix).lower() for name in proto.keys()}  # type: ignore[attr-defined] # noqa: SIM118
    assert names == {member.value for member in python}


def test_every_reason_has_the_code_that_the_contract_states() -> None:
    text = (ROOT.parent.parent / "protos/vorta/v1/errors.proto").read_text()
    comment, stated = "", {}
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("//"):
            comment += " " + line.removeprefix("//")
        elif line.startswith("ERROR_REASON_"):
            stated[line.split(" ")[0].removeprefix("ERROR_REASON_")] = comment.split()[-1].rstrip(".")
            comment = ""
        else:
            comment = ""
    stated.pop("UNSPECIFIED")
    assert set(stated) | {"UNSPECIFIED"} == {
        name.removeprefix("ERROR_REASON_")
        for name in errors_pb2.ErrorReason.keys()  # noqa: SIM118
    }
    assert {reason: code.name for reason, code in wire._CODES.items()} == stated


def test_idempotency_comes_from_the_contract() -> None:
    methods = {**INFERENCE, **ADMIN, **EMBEDDING, **VECTOR}
    once = {name for name, method in methods.items() if not method.is_idempotent}
    streams = {"StreamGenerate", "StreamChat", "StreamAnswer", "StreamEmbed", "StreamRerank", "StreamUpsert"}
    changes = {
        "CreateCollection",
        "DeleteCollection",
        "DeleteAlias",
        "CreateSnapshot",
        "DeleteSnapshot",
        "RestoreSnapshot",
    }
    assert once == streams | changes
