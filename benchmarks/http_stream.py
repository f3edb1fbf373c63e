"""HTTP/1.1 as far as a benchmark needs it: one POST per connection, its body handed on as it arrives.

On a machine that client and cluster share, the client's processor time is taken from what is measured: per event that arrives
by itself this one spends half of what httpx does (docs/benchmarks.md). Source: RFC 9112.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 5.0
READ_BYTES = 1 << 16
HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Access:
    """What a client shows and whom it believes. `trust` None: the authorities that this machine trusts."""

    api_key: str = field(default="", repr=False)
    trust: ssl.SSLContext | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


OPEN = Access()


class ProtocolError(Exception):
    """The server's bytes are not HTTP/1.1."""


class Refused(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, reason: str, body: bytes) -> None:
        super().__init__(f"HTTP {status} {reason}")
        self.status = status
        self.reason = reason
        self.body = body


class ChunkedBody:
    """Takes the chunked framing off a body, wherever the network cut it (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self._rest = b""
        self._missing_bytes = 0
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`. Raises ProtocolError."""
        data, body = self._rest + data, []
        self._rest = b""
        while data and not self.ended:
            if self._missing_bytes:  # the chunk's data and the line end behind it
                piece = data[: self._missing_bytes]
                body.append(piece[: max(0, self._missing_bytes - 2)])
                self._missing_bytes -= len(piece)
                data = data[len(piece) :]
                continue
            line, found, after = data.partition(b"\r\n")
            if not found:
                self._rest = data
                break
            data = after
            self._begin_chunk(line)
        return b"".join(body)

    def _begin_chunk(self, line: bytes) -> None:
        try:
            size_bytes = int(line.split(b";")[0], 16)
        except ValueError:
            raise ProtocolError(f"not a chunk's size: {line[:20]!r}") from None
        self.ended = size_bytes == 0
        self._missing_bytes = size_bytes + 2 if size_bytes else 0


@contextlib.asynccontextmanager
async def post(base_url: str, path: str, body: bytes, access: Access = OPEN) -> AsyncIterator[AsyncIterator[bytes]]:
    """Sends JSON; gives the pieces of the answer's body as they come, until its end or the connection's. Deadlines are the
    caller's, but for the connection's own. Raises Refused, ProtocolError, OSError, asyncio.IncompleteReadError."""
    address = urlsplit(base_url)
    secure = address.scheme == "https"
    host, port = address.hostname or "", address.port or (443 if secure else 80)
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        context = (access.trust or ssl.create_default_context()) if secure else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=HEAD_BYTES)
    try:
        head = f"POST {address.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in access.headers.items())
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status, reason, chunked = await _read_head(reader)
        pieces = _pieces(reader, chunked)
        if status >= 400:
            raise Refused(status, reason, b"".join([piece async for piece in pieces]))
        yield pieces
    finally:
        writer.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, str, bool]:
    """(status, reason, whether the body is chunked)."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, status, reason = [*first.split(" ", 2), ""][:3]
        headers = {name.lower(): value.strip().lower() for name, _, value in (line.partition(":") for line in lines)}
        return int(status), reason, headers.get("transfer-encoding") == "chunked"
    except (ValueError, asyncio.LimitOverrunError) as error:
        raise ProtocolError(f"not an HTTP answer: {error}") from error


async def _pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    framing = ChunkedBody() if chunked else None
    while data := await reader.read(READ_BYTES):
        yield framing.feed(data) if framing else data
        if framing and framing.ended:
            return
