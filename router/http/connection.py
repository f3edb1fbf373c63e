"""Limits on one HTTP connection that uvicorn's parser does not have: how many there are, how long and how slow a head may be, and
one request at a time.

A request that comes before the one before it is answered (HTTP/1.1 pipelining) is not taken: to keep it for later, uvicorn would
stop reading, and then not notice that the client has gone. The connection is closed after the answer, which tells the client that
it has to ask again (RFC 9112, 9.3.2).
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
"""An offer to go on in another protocol, as Java's HttpClient makes with every request (h2c). A server may pass over it (RFC 9110,
7.8); uvicorn's parser would pass over the request's body too."""

_OFFER = b"\r\nupgrade:"

Refused = Callable[[str], None]
"""Takes the reason, for the metric."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Of a whole server (`connections`) and of each request's line and headers (bytes, and seconds until they must be there)."""

    connections: int
    head_bytes: int
    head_timeout_s: float


def limited_connection(limits: ConnectionLimits, refused: Refused) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn. What is over a limit gets a short answer and is closed."""

    class LimitedConnection(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._is_reading_head = True
            self._head_bytes = 0
            self._line_begun = b""
            """The end of what has come of a head, where an offer to upgrade may have begun: it waits for the rest of its line."""
            self._takes_no_more = False
            """A request came too early; this connection ends with the answer that is on its way."""
            self._timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            is_full = len(self.connections) >= limits.connections
            super().connection_made(transport)
            if is_full:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "connections", "too many connections; a retry can help")
            else:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing() or self._takes_no_more:
                return
            if (
                self._timer is None and self._is_idle
            ):  # whatever comes after an answer begins the next head, or is left of its body
                if self._is_reading_head:
                    self._await_head()
                else:
                    self._timer = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self._head_bytes += len(data)
            if self._is_reading_head:
                data = self._without_offers(self._line_begun + data)
            super().data_received(data)
            if self._is_reading_head and self._head_bytes > limits.head_bytes:
                self._refuse_head()

        def on_headers_complete(self) -> None:
            if not self._is_idle:
                self._takes_no_more = True
                self.cycle.keep_alive = False
            if self._takes_no_more:
                return
            self._is_reading_head = False
            self._stop_timer()
            self._unset_keepalive_if_required()
            # Here data may hold the body's beginning too, so only what the head itself had counts.
            if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > limits.head_bytes:
                self._refuse_head()
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not (self.transport.is_closing() or self._takes_no_more):
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._is_reading_head = True
            self._head_bytes = 0
            if not (self.transport.is_closing() or self._takes_no_more):
                super().on_message_complete()
                if self._is_idle:  # answered before its body was here, whose last piece ended uvicorn's own wait
                    self._stop_timer()
                    self._unset_keepalive_if_required()
                    self.timeout_keep_alive_task = self.loop.call_later(
                        self.timeout_keep_alive, self.timeout_keep_alive_handler
                    )

        def _without_offers(self, data: bytes) -> bytes:
            head, end, rest = data.partition(b"\r\n\r\n")
            if end:
                self._line_begun = b""
                return UPGRADE.sub(b"", head) + end + rest
            # Line ends wait too: with what comes next they may be the head's.
            whole = len(head.rstrip(b"\r\n"))
            line = head.rfind(b"\r\n") if whole == len(head) else whole
            is_begun = line >= 0 and (line == whole or _OFFER.startswith(head[line : line + len(_OFFER)].lower()))
            self._line_begun = head[line:] if is_begun else b""
            return UPGRADE.sub(b"", head[:line] if is_begun else head)

        @property
        def _is_idle(self) -> bool:
            """No answer is on its way. One that is must not end for what comes behind its request: some clients send a line end."""
            return self.cycle is None or self.cycle.response_complete

        def _await_head(self) -> None:
            self._timer = self.loop.call_later(limits.head_timeout_s, self._on_late_head)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _on_late_head(self) -> None:
            self._timer = None
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "head_timeout", "the request's headers did not come in time")

        def _refuse_head(self) -> None:
            what = f"the request's line and headers are larger than {limits.head_bytes} bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_size", what)

        def _refuse(self, status: HTTPStatus, reason: str, message: str) -> None:
            refused(reason)
            self._stop_timer()
            if self._is_idle:  # not in the middle of an answer
                self.transport.write(_answer(status, message))
            self.transport.close()

    return LimitedConnection


def _answer(status: HTTPStatus, message: str) -> bytes:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    body = orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    retry = "retry-after: 1\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    return f"{head}{retry}connection: close\r\n\r\n".encode() + body
