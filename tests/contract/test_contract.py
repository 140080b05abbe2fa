"""What the protos promise: REST paths, presence, the same sampling fields everywhere, current stubs, known reasons."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor

from vorta.v1 import admin_pb2, common_pb2, errors_pb2, inference_pb2
from vorta_server.engine.request import FinishReason

ROOT = Path(__file__).resolve().parents[2]
SERVICES = [
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
]
REQUESTS = [
    inference_pb2.GenerateRequest.DESCRIPTOR,
    inference_pb2.StreamGenerateRequest.DESCRIPTOR,
    inference_pb2.ChatRequest.DESCRIPTOR,
    inference_pb2.StreamChatRequest.DESCRIPTOR,
]
PATHS = {
    "Generate": "/v1/inference",
    "StreamGenerate": "/v1/inference:stream",
    "Chat": "/v1/chat",
    "StreamChat": "/v1/chat:stream",
}


def methods() -> list[MethodDescriptor]:
    return [method for service in SERVICES for method in service.methods]


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_every_rpc_has_a_rest_path(method: MethodDescriptor) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    path = getattr(rule, rule.WhichOneof("pattern"))
    assert path.startswith("/v1/")
    if method.name in PATHS:
        assert (rule.post, rule.body) == (PATHS[method.name], "*")


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_every_unary_rpc_states_its_idempotency(service: ServiceDescriptor) -> None:
    for method in service.methods:
        if not method.server_streaming:
            assert method.GetOptions().HasField("idempotency_level"), method.name


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda descriptor: descriptor.name)
def test_sampling_fields_are_optional_and_the_same_everywhere(request_type: object) -> None:
    reference = {field.number: field for field in REQUESTS[0].fields if 10 <= field.number <= 31}
    fields = {field.number: field for field in request_type.fields if 10 <= field.number <= 31}  # type: ignore[attr-defined]
    assert fields.keys() == reference.keys()
    for number, field in fields.items():
        assert (field.name, field.type) == (reference[number].name, reference[number].type)
        assert field.has_presence or field.is_repeated, f"{field.name}: absent must differ from zero"
    assert request_type.fields_by_name["response_format"].number == 34  # type: ignore[attr-defined]


def test_reply_has_text_and_speed_at_its_top() -> None:
    fields = inference_pb2.GenerateResponse.DESCRIPTOR.fields_by_name
    assert fields["text"].type == FieldDescriptor.TYPE_STRING
    assert fields["tokens_per_second"].type == FieldDescriptor.TYPE_DOUBLE


def test_finish_reasons_of_engine_and_contract_are_equal() -> None:
    contract = {name.removeprefix("FINISH_REASON_"): value for name, value in common_pb2.FinishReason.items()}
    assert contract.pop("UNSPECIFIED") == 0
    assert contract == {reason.name: reason.value for reason in FinishReason}


def test_every_reason_in_the_code_is_in_the_contract() -> None:
    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    used = set()
    for folder in ("server", "clients/python/vorta"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant):
                    used.add(node.value.value)
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "default_reason":
                    used.add(node.value.value)
    assert {reason for reason in used if isinstance(reason, str) and reason.isupper()} <= known | {""}


def test_stubs_are_current() -> None:
    pytest.importorskip("grpc_tools")
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
