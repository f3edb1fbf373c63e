"""How a leader and its followers talk: JSON objects over one TCP connection each. It also tells when the other one is gone."""

import socket
import struct
from typing import Any

import orjson

from protocol.errors import Unavailable

Message = dict[str, Any]

HEADER = struct.Struct("!I")
"""A message's length in bytes."""
LARGEST_MESSAGE = 1 << 30
TIMEVAL = struct.Struct("ll")

SILENT_HOST_S = 15
"""After so many seconds without a sign of life from the other's kernel its host counts as gone."""
PROBES = 3


class SplitFailed(Unavailable):
    """One of the processes that share a model is gone, late or out of step. Only new ones can go on."""


class Channel:
    """One end. One thread sends, one receives."""

    def __init__(self, connection: socket.socket, send_timeout_s: float) -> None:
        """Owns `connection`. `send_timeout_s`: how long the other may not read."""
        connection.settimeout(None)
        timeout = TIMEVAL.pack(int(send_timeout_s), int(send_timeout_s % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            connection.setsockopt(socket.IPPROTO_TCP, option, SILENT_HOST_S // PROBES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        self._connection = connection
        self._reader = connection.makefile("rb")

    def be_patient(self, timeout_s: float | None) -> None:
        """How long `receive` waits from now on; then it is as if the other had ended. None, which is how it begins: for ever."""
        self._connection.settimeout(timeout_s)

    @property
    def own_host(self) -> str:
        """The address by which the other knows this host."""
        host: str = self._connection.getsockname()[0]
        return host

    def send(self, message: Message) -> None:
        self.send_packed(pack(message))

    def send_packed(self, packed: bytes) -> None:
        """What `pack` made. Raises SplitFailed when the other is gone or does not read."""
        try:
            self._connection.sendall(packed)
        except OSError as error:
            raise SplitFailed(f"a message could not be sent: {error}") from error

    def receive(self) -> Message | None:
        """The next message; None when the other has ended, however it did. Raises SplitFailed for what is none."""
        try:
            header = self._reader.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            (size,) = HEADER.unpack(header)
            if size > LARGEST_MESSAGE:
                raise SplitFailed(f"a message of {size} bytes is none of ours")
            body = self._reader.read(size)
        except (OSError, ValueError):  # ValueError: closed by our own side
            return None
        if len(body) < size:
            return None
        try:
            message = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise SplitFailed(f"a message is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise SplitFailed("a message is no JSON object")
        return message

    def close(self) -> None:
        """The other sees an end; a `receive` here returns."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._connection.close()


def pack(message: Message) -> bytes:
    """As it goes over the wire: once for all followers."""
    body = orjson.dumps(message)
    return HEADER.pack(len(body)) + body
