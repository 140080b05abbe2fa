"""A hub over HTTP on this host: enough of the Hugging Face hub's API to pull models from."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class FakeHub:
    """Serves the files of `models`, at one `commit`; `requests` are the paths asked for.

    Models in `gated` are refused, and so are files in `broken`, with a status that the hub's client does not retry.
    """

    def __init__(self, models: dict[str, dict[str, bytes]]) -> None:
        self.models = models
        self.commit = "a" * 40
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("localhost", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = urlsplit(handler.path).path
        self.requests.append(f"{handler.command} {path}")
        status, headers, body = self._find(path)
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if with_body:
            handler.wfile.write(body)

    def _find(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        model = "/".join(parts[2:4] if is_api else parts[:2])
        files = self.models.get(model)
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        rest = parts[4:] if is_api else parts[2:]
        if rest[1:2] and rest[1] not in ("main", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if is_api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if is_api:
            info = {"id": model, "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        name = "/".join(rest[2:])
        if model in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name in self.broken:
            return 400, {}, b"broken"
        data = files.get(name)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.commit}, data
