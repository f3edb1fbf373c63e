"""A worker's plain HTTP endpoint for operators, on its own thread, so a busy event loop still answers a scrape or a probe."""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from telemetry.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

WhyNot = Callable[[], str | None]
"""None when all is well, else why not. Called on the endpoint's threads."""


class MetricsEndpoint:
    """Serves `metrics` on host:port (port 0: any free one), and each of `probes` under its path: 200, or 503 and why not.
    `address` is what it listens on."""

    def __init__(self, metrics: Metrics, host: str, port: int, probes: Mapping[str, WhyNot] | None = None) -> None:
        figures: WSGIApplication = make_wsgi_app(metrics.registry)
        probes = probes or {}

        def answer(environment: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
            why_not = probes.get(environment["PATH_INFO"])
            if why_not is None:
                return figures(environment, start)
            reason = why_not()
            start("200 OK" if reason is None else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{reason or 'ok'}\n".encode()]

        server = _Server6 if ":" in host else _Server
        self._server = make_server(host, port, answer, server, handler_class=_Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(ThreadingMixIn, WSGIServer):
    """A client that is slow to take its answer holds up nobody else."""

    daemon_threads = True

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask DNS for our name, which can take as long as it likes
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    timeout = 30
    """Seconds; a client that says nothing holds a thread."""

    def log_message(self, format: str, *args: object) -> None:
        """One line per scrape would be all that a log has."""
