"""AdminService over the wire, before a loader that only records."""

from __future__ import annotations

import pytest

from tests.server.front import scripted
from tests.server.front.stack import error_of
from vorta.errors import InvalidArgument, NotFound
from vorta.v1 import admin_pb2, admin_pb2_grpc
from vorta_server.registry.model import ModelEntry, ModelState


@pytest.fixture
def admin(stack):
    return admin_pb2_grpc.AdminServiceStub(stack.client)


async def test_list_and_get(stack, admin):
    stack.entry.stats = scripted.stats(running=2, waiting=1, kv_used_tokens=256, kv_capacity_tokens=1024)
    stack.registry.update(stack.entry, load_time_s=5.5, restart_count=3, worker_pid=77)
    stack.registry.add(ModelEntry(model="broken", source="b", precision="int4", state=ModelState.FAILED, error="torn"))
    reply = await admin.ListModels(admin_pb2.ListModelsRequest())
    broken, model = reply.models
    assert (broken.model, broken.state, broken.error, broken.precision) == (
        "broken",
        admin_pb2.MODEL_STATE_FAILED,
        "torn",
        "int4",
    )
    assert not broken.HasField("load")
    assert not broken.HasField("load_time")
    assert (model.model, model.state, model.is_default) == ("scripted", admin_pb2.MODEL_STATE_SERVING, True)
    assert (model.architecture, model.max_model_len, model.vocab_size) == ("ScriptedForCausalLM", 128, 1000)
    load = model.load
    assert (load.running_requests, load.waiting_requests, load.kv_use) == (2, 1, 0.25)
    assert (load.restart_count, load.worker_pid) == (3, 77)
    assert model.load_time.ToNanoseconds() == 5_500_000_000
    assert (await admin.GetModel(admin_pb2.GetModelRequest(model="scripted"))).model == model


async def test_unknown_and_missing_model(admin):
    assert type(await error_of(admin.GetModel(admin_pb2.GetModelRequest(model="x")))) is NotFound
    assert type(await error_of(admin.UnloadModel(admin_pb2.UnloadModelRequest(model="x")))) is NotFound
    for call in (
        admin.GetModel(admin_pb2.GetModelRequest()),
        admin.LoadModel(admin_pb2.LoadModelRequest()),
        admin.UnloadModel(admin_pb2.UnloadModelRequest()),
    ):
        error = await error_of(call)
        assert (error.reason, error.field) == ("MISSING_FIELD", "model")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model", {"model": "a b"}),
        ("model", {"model": "x" * 257}),
        ("precision", {"model": "m", "precision": "int3"}),
        ("max_model_len", {"model": "m", "max_model_len": 0}),
    ],
)
async def test_bad_load(admin, field, values):
    error = await error_of(admin.LoadModel(admin_pb2.LoadModelRequest(**values)))
    assert (type(error), error.field) == (InvalidArgument, field)


async def test_load_and_unload_reach_the_loader(stack, admin):
    reply = await admin.LoadModel(
        admin_pb2.LoadModelRequest(model="org/m", source="/m", precision="int4", max_model_len=64)
    )
    assert reply.model.model == "org/m"
    assert stack.loader.loads == [("org/m", "/m", "int4", 64)]
    reply = await admin.UnloadModel(admin_pb2.UnloadModelRequest(model="org/m", grace_s=2))
    assert reply.model.state == admin_pb2.MODEL_STATE_UNLOADED
    await admin.UnloadModel(admin_pb2.UnloadModelRequest(model="org/m"))
    assert stack.loader.unloads == [("org/m", 2.0), ("org/m", None)]
    error = await error_of(admin.UnloadModel(admin_pb2.UnloadModelRequest(model="org/m", grace_s=-1)))
    assert error.field == "grace_s"


async def test_server_info(stack, admin):
    info = await admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
    assert (info.version, info.default_model, info.is_draining) == ("1.2.3", "scripted", False)
    assert info.start_time.seconds == 1000
    assert info.max_message_bytes == 16 * 1024 * 1024
    assert list(info.services) == ["vorta.v1.InferenceService", "vorta.v1.AdminService"]
