"""A small API server over real HTTP on the loopback: enough of Kubernetes for programs that use its official client.

It knows discovery, reading, lists with selectors and pages, watches, creation, three kinds of patch, server-side apply with
conflicts, dry runs, status and scale, deletion with owners and finalizers, eviction, accounts with Roles, and faults on demand.
tests/integration/test_k8s_apiserver.py holds it to checks that a real one passed.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests.apiserver.errors import ApiError
from tests.apiserver.faults import Faults
from tests.apiserver.resources import OPERATORS, Object, Resource
from tests.apiserver.rights import ADMIN_TOKEN
from tests.apiserver.routes import Answer, Request, answer
from tests.apiserver.store import Store


class ApiServer:
    """A context: it listens while it is entered. `operators`: custom resources that are known from the beginning."""

    def __init__(self, operators: tuple[Resource, ...] = OPERATORS) -> None:
        self.store = Store()
        self.store.resources += operators
        self.faults = Faults()
        self._http = _Http(self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "ApiServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.ended.set()
        with self.store.changed:
            self.store.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def forget(self, group: str) -> None:
        """As if its definitions were not installed."""
        self.store.resources = [one for one in self.store.resources if one.group != group]

    def kubeconfig(self, file: Path, token: str = ADMIN_TOKEN, context: str = "test") -> Path:
        """Writes one that leads here."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "who", "user": {"token": token}}],
            "contexts": [{"name": context, "context": {"cluster": "here", "user": "who"}}],
        }
        file.write_text(yaml.safe_dump(content))
        return file


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: ApiServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests; anything else is an error of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    """A reply is several small writes; Nagle's algorithm would hold the last one back for 40 ms."""
    server: _Http

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body: Any = json.loads(self.rfile.read(length) or "null") if length else None
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        content_type = (self.headers.get("Content-Type") or "").partition(";")[0]
        request = Request(
            self.command, unquote(parts.path), query, body, content_type, token, self.headers.get("User-Agent") or ""
        )
        api = self.server.api
        try:
            api.faults.meet(request.method, request.path, "dryRun" in query)
            result = answer(api.store, request)
        except ApiError as error:
            result = Answer(error.status(), error.code)
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.close()
            return
        if result.watched is not None:
            self._watch(result.watched, request)
        else:
            self._send(result.code, json.dumps(result.content).encode())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815  # names that the standard library asks for

    def _send(self, code: int, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data)

    def _watch(self, events: Iterator[Object | None], request: Request) -> None:
        """Until its time is over, the client leaves, or the server ends. None: nothing happened for a moment."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + float(request.query.get("timeoutSeconds") or 60)
        try:
            for event in events:
                if event is not None:
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()
                if time.monotonic() > end or self.server.api.faults.ended.is_set():
                    break
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is the test's."""
