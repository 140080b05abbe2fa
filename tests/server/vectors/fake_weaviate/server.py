"""Starts the fake on free ports."""

from __future__ import annotations

import copy
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from weaviate.proto.v1 import weaviate_pb2_grpc

from tests.server.vectors.fake_weaviate.service import Service
from tests.server.vectors.fake_weaviate.state import Refused, State


@dataclass
class Faults:
    """What goes wrong on purpose.

    Attributes:
        codes: Status to answer the next calls of a method with.
        delay_s: Time that every gRPC call takes more.
        refused_uuids: Objects that cannot be written.
        max_deleted: Most objects one batch delete deletes.
        api_key: Required when not empty.
        does_schema_know_aliases: Whether GET /v1/schema/{alias} answers with the class.
        calls: gRPC methods called.
    """

    codes: dict[str, list[grpc.StatusCode]] = field(default_factory=dict)
    delay_s: float = 0.0
    refused_uuids: set[str] = field(default_factory=set)
    max_deleted: int = 10_000
    api_key: str = ""
    does_schema_know_aliases: bool = False
    calls: list[str] = field(default_factory=list)
    gate: threading.Event | None = None

    def take(self, method: str, authorization: str) -> tuple[grpc.StatusCode, str] | None:
        """The failure of a call, if any."""
        self.calls.append(method)
        if self.gate is not None:
            self.gate.wait(60)
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.api_key and authorization != f"Bearer {self.api_key}":
            return grpc.StatusCode.UNAUTHENTICATED, "unauthorized"
        codes = self.codes.get(method)
        return (codes.pop(0), "made to fail") if codes else None


class FakeWeaviate:
    """A running fake; leave its `with` block to stop it."""

    def __init__(self, *, version: str = "1.34.0") -> None:
        self.version = version
        self.state = State()
        self.faults = Faults()
        self._grpc = grpc.server(ThreadPoolExecutor(16, thread_name_prefix="fake-weaviate"))
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(Service(self.state, self.faults), self._grpc)
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._grpc)
        self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._http = _HttpServer(("127.0.0.1", 0), _Handler)
        self._http.fake = self
        self.http_port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """For `parse_weaviate_url`."""
        return f"weaviate://127.0.0.1:{self.http_port}/{self.grpc_port}"

    def __enter__(self) -> FakeWeaviate:
        self._grpc.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.faults.gate is not None:
            self.faults.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._grpc.stop(0).wait()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    fake: FakeWeaviate


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer
    timeout = 30
    wbufsize: ClassVar[int] = -1  # one packet an answer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _route(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        fake = self.server.fake
        key = fake.faults.api_key
        try:
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                raise Refused(401, "unauthorized")
            with fake.state.lock:
                status, answer = _answer(fake, self.command, url.path.removeprefix("/v1"), body, parse_qs(url.query))
        except Refused as error:
            status, answer = error.status, {"error": [{"message": str(error)}]}
        packed = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _route


def _answer(fake: FakeWeaviate, method: str, path: str, body: Any, query: dict[str, list[str]]) -> tuple[int, Any]:
    state = fake.state
    parts = path.strip("/").split("/")
    match method, parts:
        case "GET", ["meta"]:
            return 200, {"version": fake.version, "hostname": "fake", "modules": {}, "grpcMaxMessageSize": 104858000}
        case "GET", [".well-known", "ready" | "live"]:
            return 200, None
        case "GET", ["nodes"]:
            return 200, {"nodes": [{"name": "fake", "status": "HEALTHY", "version": fake.version, "gitHash": "0"}]}
        case "GET", ["schema"]:
            return 200, {"classes": [found.schema for found in state.classes.values()]}
        case "POST", ["schema"]:
            return 200, state.create(body)
        case "GET", ["schema", name]:
            if fake.faults.does_schema_know_aliases:
                name = state.aliases.get(name, name)
            if name not in state.classes:
                raise Refused(404, "not found")
            return 200, state.classes[name].schema
        case "DELETE", ["schema", name]:
            state.delete(name)
            return 200, None
        case "POST", ["schema", name, "properties"]:
            state.add_property(name, body)
            return 200, body
        case "GET", ["aliases"]:
            only = query.get("class", [None])[0]
            found = [{"alias": a, "class": c} for a, c in state.aliases.items() if only in (None, c)]
            return 200, {"aliases": found}
        case "POST", ["aliases"]:
            state.point_alias(body["alias"], body["class"], is_new=True)
            return 200, body
        case "GET", ["aliases", name]:
            if name not in state.aliases:
                raise Refused(404, "alias not found")
            return 200, {"alias": name, "class": state.aliases[name]}
        case "PUT", ["aliases", name]:
            state.point_alias(name, body["class"], is_new=False)
            return 200, {"alias": name, "class": body["class"]}
        case "DELETE", ["aliases", name]:
            return (204 if state.aliases.pop(name, None) else 404), None
        case "POST", ["backups", "filesystem"]:
            state.backups[body["id"]] = copy.deepcopy(state.classes[body["include"][0]])
            return 200, {"id": body["id"], "classes": body["include"], "path": "/fake", "status": "STARTED"}
        case "GET", ["backups", "filesystem"]:
            return 200, [
                {"id": key, "classes": [kept.schema["class"]], "status": "SUCCESS", "size": 0.5}
                for key, kept in state.backups.items()
            ]
        case "GET", ["backups", "filesystem", key]:
            return 200, state.backup_status(key)
        case "POST", ["backups", "filesystem", key, "restore"]:
            if f"{key}/restore" not in state.damaged:
                kept = copy.deepcopy(state.backups[key])
                state.classes[kept.schema["class"]] = kept
            return 200, {"id": key, "classes": body["include"], "path": "/fake", "status": "STARTED"}
        case "GET", ["backups", "filesystem", key, "restore"]:
            return 200, state.backup_status(f"{key}/restore")
    raise Refused(404, f"the fake has no {method} {path}")
