"""Inputs over the wire, at a running cluster: every one is answered or refused in words, within a deadline."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio

from protocol import cluster_pb2

ANSWER_S = 20.0
AT_ONCE = 8
HEAD_LIMIT = 1 << 20

LINK = "/serval.cluster.v1.RouterLink/Connect"
MEMBER = " to a member"
"""What an answer on that stream ends with when the router had welcomed who spoke."""

FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""What an input may be answered with. INTERNAL and UNKNOWN are bugs of ours, DEADLINE_EXCEEDED is a hang."""

FINE_HTTP = {200, 400, 401, 404, 405, 408, 411, 413, 414, 415, 417, 422, 426, 429, 431, 501, 503, 505}


class Tally:
    """Inputs by surface and by what they were answered with; `wrong` are those that must not be."""

    def __init__(self) -> None:
        self.answers: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []

    @property
    def total(self) -> int:
        return sum(counts.total() for counts in self.answers.values())

    def add(self, surface: str, answer: str, is_fine: bool, data: bytes) -> None:
        self.answers.setdefault(surface, Counter())[answer] += 1
        if not is_fine and len(self.wrong) < 100:
            self.wrong.append(f"{surface}: {answer} to {data[:300]!r}")


async def in_turn(inputs: Iterable[bytes], send: Any) -> None:
    """A few at once."""
    left = iter(inputs)

    async def go() -> None:
        for data in left:
            await send(data)

    await asyncio.gather(*(go() for _ in range(AT_ONCE)))


async def fuzz_grpc(channel: grpc.aio.Channel, method: str, is_stream: bool, inputs: Iterable[bytes], tally: Tally) -> None:
    """Raw bytes to one method. An answer that streams is read to its end."""
    call_of = (channel.unary_stream if is_stream else channel.unary_unary)(method)

    async def send(data: bytes) -> None:
        code, details = grpc.StatusCode.OK, ""
        try:
            call = call_of(data, timeout=ANSWER_S)
            if is_stream:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        has_words = code is grpc.StatusCode.OK or bool(details)
        tally.add(method, code.name, code in FINE and has_words, data)

    await in_turn(inputs, send)


async def fuzz_link(
    channel: grpc.aio.Channel, hellos: Sequence[cluster_pb2.Hello], inputs: Iterable[bytes], tally: Tally
) -> None:
    """As workers would speak to a router: each input comes on a stream of its own, three of four after a Hello that is taken, so
    that they are read as a member's. `hellos`: what the cluster's own workers would say."""
    connect = channel.stream_stream(LINK)
    turn = 0

    async def send(data: bytes) -> None:
        nonlocal turn
        turn += 1
        said = [data]
        if turn % 4:
            hello = cluster_pb2.Hello()
            hello.CopyFrom(hellos[turn % len(hellos)])
            # Not a name that is in use: a second stream of one name would end the first before it was read.
            hello.peer.name, hello.peer.incarnation = f"fuzz-{turn % (4 * AT_ONCE)}", turn
            said.insert(0, cluster_pb2.FromWorker(hello=hello).SerializeToString())
        code, is_welcome, is_fine = "OK", False, True

        async def speak() -> AsyncIterator[bytes]:
            for each in said:
                yield each

        try:
            async with asyncio.timeout(ANSWER_S):
                async for _ in connect(speak(), timeout=ANSWER_S):
                    is_welcome = True
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            # What this client's own library says when the stream ended while it was still writing: no word of the router's.
            is_fine = error.code() in FINE or error.details() == "Internal error from Core"
        except TimeoutError:
            code, is_fine = "hang", False
        tally.add(LINK, code + MEMBER if is_welcome else code, is_fine, data)

    await in_turn(inputs, send)


async def fuzz_bodies(address: tuple[str, int], path: str, inputs: Iterable[bytes], tally: Tally) -> None:
    async def send(body: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        data = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        answer = await _exchange(address, data, ends=False)
        status = _status(answer)
        tally.add(f"POST {path}", status, status.isdigit() and int(status) in FINE_HTTP, body)

    await in_turn(inputs, send)


async def fuzz_heads(address: tuple[str, int], inputs: Iterable[bytes], tally: Tally) -> None:
    """Whole requests, head and body. One that is not complete may end in a closed connection."""

    async def send(data: bytes) -> None:
        status = _status(await _exchange(address, data, ends=True))
        tally.add("HTTP heads", status, status == "closed" or (status.isdigit() and int(status) in FINE_HTTP), data)

    await in_turn(inputs, send)


async def _exchange(address: tuple[str, int], data: bytes, *, ends: bool) -> bytes:
    """All that comes back until the connection is closed; `hang` when that takes too long. `ends`: nothing can follow `data`, which
    may be less than it says; a server may take that for a client who left."""
    writer = None
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(*address, limit=HEAD_LIMIT)
            writer.write(data)
            if ends:
                writer.write_eof()
            return await reader.read()
    except TimeoutError:
        return b"hang"
    except ConnectionError:
        return b""
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _status(answer: bytes) -> str:
    if answer == b"hang":
        return "hang"
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        return "closed"
    words = answer.split(b" ", 2)
    return words[1].decode(errors="replace")[:3] if answer.startswith(b"HTTP/1.") and len(words) > 1 else "not HTTP"
