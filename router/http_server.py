"""uvicorn inside a loop that is not its own: no signal handlers, no exit of the process, a bounded end."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from protocol.errors import ConfigError

_KEEP_ALIVE_S = 75
_STARTED_POLL_S = 0.01


class HttpServer:
    """`start` binds before it returns, so `port` is known. Sends each write at once (no Nagle delay), and
    drops clients that accept nothing for `client_stall_s` while bytes wait for them."""

    def __init__(self, host: str, port: int, client_stall_s: float) -> None:
        self._socket = _bind(host, port, client_stall_s)
        self.port: int = self._socket.getsockname()[1]
        self._server: _EmbeddedServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._server = _EmbeddedServer(config)
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


class _EmbeddedServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to whoever runs the process.
        yield


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
