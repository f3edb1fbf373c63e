"""uvicorn inside a loop that is not its own: no signal handlers, no exit of the process, a bounded end; TLS where configured."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from protocol.errors import ConfigError
from protocol.tls import TlsIdentity
from router.config import RouterConfig
from router.http.connection import ConnectionLimits, limited_connection
from router.tenants.caller import ANONYMOUS
from telemetry.metrics import Metrics

_STARTED_POLL_S = 0.01


class HttpServer:
    """Binds at once, so `port` is known before `start`. Sends each write at once (no Nagle delay), and drops clients that accept
    nothing for `client_stall_s` while bytes wait for them. With `tls` nothing is answered in plain text."""

    def __init__(self, config: RouterConfig, tls: TlsIdentity | None, metrics: Metrics) -> None:
        self._config = config
        self._tls = tls
        self._metrics = metrics
        self._socket = _bind(config.host, config.http_port, config.client_stall_s)
        self.port: int = self._socket.getsockname()[1]
        self._server: _EmbeddedServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, app: ASGIApp) -> None:
        self._server = _EmbeddedServer(self._uvicorn_config(app))
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http-server")
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(_STARTED_POLL_S)

    async def stop(self, deadline_s: float) -> None:
        """Answers in progress get `deadline_s` to leave, then their connections are closed."""
        if self._server is None or self._serving is None:
            self._socket.close()
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(deadline_s))
        self._server.should_exit = True
        await self._serving

    def _refused(self, reason: str) -> None:
        """Before a head is whole nobody knows whose request it is."""
        self._metrics.rejections.of(reason=reason, tenant=ANONYMOUS.tenant).inc()

    def _uvicorn_config(self, app: ASGIApp) -> uvicorn.Config:
        config = self._config
        limits = ConnectionLimits(config.max_connections, config.max_header_bytes, config.header_timeout_s)
        options = uvicorn.Config(
            app,
            http=limited_connection(limits, self._refused),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=round(config.keep_alive_s),
        )
        options.load()
        if self._tls is not None:
            begun = self._metrics.tls_handshakes.of(surface="http").inc
            failed = self._metrics.tls_refusals.of(surface="http").inc
            options.ssl = self._tls.server_context(_counted_handshake(begun, failed))
        return options


class _EmbeddedServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to whoever runs the process.
        yield


def _counted_handshake(begun: Callable[[], None], failed: Callable[[], None]) -> type[ssl.SSLObject]:
    """The server's end of TLS connections. asyncio tells nobody of those that never come about."""

    class CountedHandshake(ssl.SSLObject):
        _has_begun = False

        def do_handshake(self) -> None:
            if not self._has_begun:
                self._has_begun = True
                begun()
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                failed()
                raise

    return CountedHandshake


def _bind(host: str, port: int, client_stall_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit these. asyncio itself sets TCP_NODELAY only where a socket names its protocol.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(client_stall_s * 1000))
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"http_port: cannot listen on {host}:{port}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener
