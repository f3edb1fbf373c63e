"""The load generator's HTTP: framing wherever the network cuts, refusals, what is not HTTP at all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.http_stream import ChunkedBody, ProtocolError, Refused, post


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 30))
def test_chunks_come_out_whole_wherever_the_network_cut_them(chunks: list[bytes], size: int) -> None:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    body = ChunkedBody()
    assert b"".join(body.feed(framed[at : at + size]) for at in range(0, len(framed), size)) == b"".join(chunks)
    assert body.ended


def test_a_body_that_was_cut_has_not_ended() -> None:
    body = ChunkedBody()
    assert body.feed(b"5\r\nab") == b"ab"
    assert not body.ended


def test_extensions_are_skipped_and_nonsense_is_refused() -> None:
    assert ChunkedBody().feed(b"2;name=value\r\nab\r\n") == b"ab"
    with pytest.raises(ProtocolError, match="size"):
        ChunkedBody().feed(b"data: {}\r\n")


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads one request and sends these bytes."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", requests


async def read(answer: bytes) -> bytes:
    async with asyncio.timeout(10), answering(answer) as (url, _), post(url, "/v1/completions", b"{}") as pieces:
        return b"".join([piece async for piece in pieces])


async def test_a_body_is_read_in_either_framing() -> None:
    assert await read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n") == b"abc"
    assert await read(b"HTTP/1.1 200\r\n\r\nabc") == b"abc"


async def test_the_request_is_whole_and_below_the_urls_path() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as (url, requests), post(f"{url}/base/", "/v1/completions", b"{}"):
        pass
    assert requests[0].startswith(b"POST /base/v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert requests[0].endswith(b"\r\nContent-Length: 2\r\n\r\n{}")


async def test_a_refusal_has_its_body() -> None:
    with pytest.raises(Refused) as refused:
        await read(b"HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert (refused.value.status, refused.value.reason, refused.value.body) == (429, "Too Many Requests", b"{}")


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
async def test_what_is_not_http_is_refused(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        await read(answer)


async def test_a_connection_that_ends_before_the_answer() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        await read(b"HTTP/1.1 200 OK\r\n")
