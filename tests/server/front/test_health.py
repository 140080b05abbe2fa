"""grpc.health.v1 over the wire: Check, List and a Watch that follows."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.front import scripted
from tests.server.front.stack import error_of
from vorta.errors import NotFound
from vorta_server.registry.model import ModelEntry, ModelState

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

INFERENCE = "vorta.v1.InferenceService"
ADMIN = "vorta.v1.AdminService"


@pytest.fixture
def health(stack):
    return health_pb2_grpc.HealthStub(stack.client)


def named(service):
    return health_pb2.HealthCheckRequest(service=service)


async def status(health, service):
    return (await health.Check(named(service))).status


async def test_names_follow_the_model(stack, health):
    names = ("", INFERENCE, "vorta.model/scripted")
    assert [await status(health, name) for name in names] == [SERVING] * 3
    for change in ({"state": ModelState.LOADING}, {"state": ModelState.SERVING, "is_stalled": True}):
        stack.registry.update(stack.entry, **change)
        assert [await status(health, name) for name in names] == [NOT_SERVING] * 3
        assert await status(health, ADMIN) == SERVING


async def test_unknown_names(stack, health):
    assert type(await error_of(health.Check(named("nobody")))) is NotFound
    assert type(await error_of(health.Check(named("vorta.model/nobody")))) is NotFound


async def test_watch_follows_every_lasting_change(stack, health):
    stack.worker.script = scripted.hang
    watch = health.Watch(named("vorta.model/other"))
    assert (await watch.read()).status == SERVICE_UNKNOWN
    entry = ModelEntry(model="other", source="x", precision="int8")
    stack.registry.add(entry)
    assert (await watch.read()).status == NOT_SERVING
    stack.registry.update(entry, state=ModelState.SERVING)
    assert (await watch.read()).status == SERVING
    stack.registry.update(entry, is_stalled=True)
    assert (await watch.read()).status == NOT_SERVING
    stack.registry.update(entry, is_stalled=False)
    assert (await watch.read()).status == SERVING
    stack.health.drain()
    assert (await watch.read()).status == NOT_SERVING


async def test_draining_is_not_serving_and_still_answers(stack, health):
    stack.admission.drain()
    stack.health.drain()
    reply = await health.List(health_pb2.HealthListRequest())
    assert set(reply.statuses) == {"", INFERENCE, ADMIN, "vorta.model/scripted"}
    assert {entry.status for entry in reply.statuses.values()} == {NOT_SERVING}
    assert not stack.health.is_ready


async def test_a_watcher_that_leaves_is_forgotten(stack, health):
    watch = health.Watch(named(""))
    await watch.read()
    assert len(stack.health._watchers) == 1
    watch.cancel()
    assert await watch.code() is grpc.StatusCode.CANCELLED
    await health.Check(named(""))
    for _ in range(100):
        if not stack.health._watchers:
            break
        await health.Check(named(""))
    assert not stack.health._watchers
