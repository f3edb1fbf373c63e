"""A gRPC server by hand on `h2`, for mock workers of other routers: it writes many streams' messages at once and so is faster than
the router it feeds, which no gRPC library for Python is. Cleartext HTTP/2; unary calls and server streams.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md).
"""

import asyncio
import struct
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError

GRPC_UNIMPLEMENTED = 12

OnCall = Callable[["GrpcConnection", int, str, bytes], None]
"""(connection, stream, path, request message). It answers with `reply`, `refuse`, or `write` and `end`, now or later."""
OnGone = Callable[["GrpcConnection", int], None]


class GrpcConnection(asyncio.Protocol):
    """One client's connection. Methods with a stream that has gone do nothing."""

    def __init__(self, on_call: OnCall, on_gone: OnGone) -> None:
        self._on_call = on_call
        self._on_gone = on_gone
        self._h2 = H2Connection(H2Configuration(client_side=False, validate_inbound_headers=False))
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, tuple[str, bytearray]] = {}
        self._open: set[int] = set()
        self._room = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        try:
            self._take(self._h2.receive_data(data))
        except ProtocolError:
            self._close()
        else:
            self.flush()

    def _take(self, events: list[Event]) -> None:
        if any(isinstance(event, ConnectionTerminated) for event in events):
            self._close()  # the client has no use for what is still open
            return
        for event in events:
            if isinstance(event, RequestReceived):
                headers = dict(event.headers)
                self._calls[event.stream_id] = (headers[b":path"].decode(), bytearray())
            elif isinstance(event, DataReceived):
                self._calls[event.stream_id][1].extend(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                path, message = self._calls.pop(event.stream_id)
                self._open.add(event.stream_id)
                self._on_call(self, event.stream_id, path, bytes(message[5:]))
            elif isinstance(event, StreamReset):
                self._gone(event.stream_id)
            elif isinstance(event, WindowUpdated):
                self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        for stream in list(self._open):
            self._gone(stream)

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def begin(self, stream: int) -> None:
        """Sends the headers of an answer."""
        if stream in self._open:
            self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])

    async def write(self, stream: int, message: bytes) -> None:
        """Returns when HTTP/2's flow control has room for it; `flush` sends it."""
        framed = struct.pack(">BI", 0, len(message)) + message
        while stream in self._open and self._h2.local_flow_control_window(stream) < len(framed):
            self.flush()
            self._room.clear()
            await self._room.wait()
        if stream in self._open:
            self._h2.send_data(stream, framed)

    def end(self, stream: int, status: int = 0) -> None:
        if stream in self._open:
            self._open.discard(stream)
            self._h2.send_headers(stream, [("grpc-status", str(status))], end_stream=True)

    def reply(self, stream: int, message: bytes) -> None:
        """A unary call's whole answer."""
        self.begin(stream)
        self._h2.send_data(stream, struct.pack(">BI", 0, len(message)) + message)
        self.end(stream)

    def refuse(self, stream: int) -> None:
        """The method is not there."""
        self._open.discard(stream)
        headers = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", str(GRPC_UNIMPLEMENTED))]
        self._h2.send_headers(stream, headers, end_stream=True)

    def flush(self) -> None:
        if self._transport is not None and (data := self._h2.data_to_send()):
            self._transport.write(data)

    async def drain(self) -> None:
        """Returns when the socket has taken enough of what was written."""
        self.flush()
        assert self._transport is not None
        if self._transport.get_write_buffer_size() > self._transport.get_write_buffer_limits()[1]:
            self._room.clear()
            await self._room.wait()
        else:
            await asyncio.sleep(0)

    def _gone(self, stream: int) -> None:
        self._calls.pop(stream, None)
        if stream in self._open:
            self._open.discard(stream)
            self._on_gone(self, stream)
        self._room.set()
