"""What one client may cost: bodies, messages, heads, prompts, connections, streams, and how slow it may be."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protocol import serval_pb2, serval_pb2_grpc
from tests.integration.router_support import CONTEXT, MODEL, WAIT_S, Cluster, cluster, positional_answer, write_model_folder
from tests.integration.security_support import secure

LIMIT = 4096


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_to(port: int, *pieces: bytes) -> bytes:
    """Sends the pieces and reads until the router closes the connection."""
    async with asyncio.timeout(WAIT_S), connection(port) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b""


def rejected(one: Cluster, reason: str) -> float:
    return one.metrics.value("serval_rejections_total", reason=reason, tenant="default")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    limits = {"max_body_bytes": LIMIT, "max_header_bytes": LIMIT, "header_timeout_s": 0.5, "keep_alive_s": 1.0}
    async with cluster(write_model_folder(tmp_path), max_connections=3, max_streams_per_connection=1, **limits) as one:
        yield one


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_an_oversize_body(running: Cluster, is_chunked: bool) -> None:
    content = b'{"prompt": "' + b"x" * (LIMIT + 1) + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        yield content[: LIMIT // 2]
        yield content[LIMIT // 2 :]

    refused = await running.http.post("/v1/completions", content=chunks() if is_chunked else content)
    assert refused.status_code == 413
    assert str(LIMIT) in refused.json()["error"]["message"]
    assert rejected(running, "invalid") == 1
    assert (await running.http.get("/health")).status_code == 200


async def test_an_oversize_message(running: Cluster) -> None:
    stub: Any = serval_pb2_grpc.ServalStub(running.channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Generate(serval_pb2.GenerateRequest(text="x" * LIMIT), timeout=WAIT_S).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_prompt_longer_than_the_model_takes(running: Cluster) -> None:
    async with running.worker(answer=positional_answer("no")) as worker:
        body = {"model": MODEL, "prompt": [7] * (CONTEXT + 1)}
        refused = await running.http.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        assert worker.submits == []


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /health HTTP/1.1\r\nx-one: " + b"x" * (LIMIT + 1)],
        [b"GET /health HTTP/1.1\r\nx-one: " + b"x" * (LIMIT + 1) + b"\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\n", *[b"x-%d: %s\r\n" % (number, b"x" * 512) for number in range(9)]],
        [b"GET /" + b"x" * (LIMIT + 1) + b" HTTP/1.1\r\n\r\n"],
    ],
    ids=["unfinished", "one header", "many headers", "path"],
)
async def test_an_oversize_head(running: Cluster, pieces: list[bytes]) -> None:
    answer = await answer_to(running.ports.http, *pieces)
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""  # the rest of what came can reset the connection
    assert rejected(running, "head_size") == 1


async def test_a_body_behind_a_small_head_is_no_oversize_head(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path), max_header_bytes=1024) as one:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9000\r\n\r\n"
        assert (await answer_to(one.ports.http, head + b"x" * 9000)).startswith(b"HTTP/1.1 400 ")
        assert rejected(one, "head_size") == 0


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nhost:"])
async def test_a_slow_head(running: Cluster, first: bytes) -> None:
    answer = await answer_to(running.ports.http, first)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert rejected(running, "head_timeout") == 1


async def test_a_slow_head_after_an_answer(running: Cluster) -> None:
    """Line ends between two requests do not make a connection live for ever."""
    answer = await answer_to(running.ports.http, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_line_end_behind_a_body_does_not_cut_the_answer(running: Cluster) -> None:
    body = b'{"model": "test-model", "prompt": [1, 2, 3], "max_tokens": 1}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with running.worker() as worker, connection(running.ports.http) as (reader, writer):
        writer.write(head + body)
        submit = await worker.next_submit()
        writer.write(b"\r\n")
        await asyncio.sleep(0.8)  # longer than a head may take
        worker.say_tokens(submit.request, [65])
        worker.say_ended(submit.request, "length")
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert rejected(running, "head_timeout") == 0


@pytest.mark.parametrize(
    "offer", [b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings, close", b"upgrade:websocket\r\nconnection: close"]
)
async def test_an_offer_to_upgrade_takes_no_body_away(running: Cluster, offer: bytes) -> None:
    body = b'{"model": "test-model", "prompt": [1, 2, 3], "max_tokens": 1, "user": "\\r\\nupgrade: me"}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n%s\r\ncontent-length: %d\r\n\r\n" % (offer, len(body))
    async with running.worker(answer=positional_answer("a")), connection(running.ports.http) as (reader, writer):
        writer.write(head + body)
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_an_offer_in_several_packets_takes_no_body_away(running: Cluster, size: int) -> None:
    body = b'{"model": "test-model", "prompt": [1, 2, 3], "max_tokens": 1}\r\n'
    head = b"POST /v1/completions HTTP/1.1\r\nUpgrade: h2c\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    whole = head + body
    async with running.worker(answer=positional_answer("a")), connection(running.ports.http) as (reader, writer):
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)  # the router's turn: it is on this loop
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert answer.startswith(b"HTTP/1.1 200 ")


def streamed(**more: Any) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 50, "stream": True, **more}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("is_at_once", [True, False])
async def test_a_request_behind_one_that_streams_does_not_hide_that_the_client_left(running: Cluster, is_at_once: bool) -> None:
    second = streamed(prompt=[9])
    async with running.worker(answer=positional_answer("no end "), hold_after=2) as worker:
        async with connection(running.ports.http) as (reader, writer):
            writer.write(streamed() + second if is_at_once else streamed())
            assert b"no" in await asyncio.wait_for(reader.readuntil(b"no"), WAIT_S)
            if not is_at_once:
                writer.write(second)
            await writer.drain()
        assert await worker.next_cancel() == (await worker.next_submit()).request
    assert running.outcomes() == {"cancelled": 1}


async def test_a_request_before_the_last_one_s_answer_is_not_taken(running: Cluster) -> None:
    async with running.worker(answer=positional_answer("no end ")) as worker:
        answer = await answer_to(running.ports.http, streamed(stream=False) * 3)
        assert answer.count(b"HTTP/1.1 200 OK") == 1 and b"connection: close" in answer and b'"usage"' in answer
        assert len(worker.submits) == 1


@pytest.mark.parametrize("rest", [b"x", b"x" * 9000])
async def test_a_body_behind_its_answer(running: Cluster, rest: bytes) -> None:
    """Neither a body that was refused and never ends makes a connection live for ever, nor one that does."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n"
    async with asyncio.timeout(WAIT_S), connection(running.ports.http) as (reader, writer):
        writer.write(head)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.write(rest)
        await reader.read()


async def test_a_connection_goes_on_after_a_refused_body(running: Cluster) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n"
    async with asyncio.timeout(WAIT_S), connection(running.ports.http) as (reader, writer):
        writer.write(head)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.write(b"x" * 9000)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP/1.1 200 OK" in await reader.read()


async def test_an_idle_connection(running: Cluster) -> None:
    answer = await answer_to(running.ports.http, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_slow_body(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path), body_timeout_s=0.2) as one:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n"
        assert (await answer_to(one.ports.http, head + b"x")).startswith(b"HTTP/1.1 408 ")


async def test_too_many_connections(running: Cluster) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    async with asyncio.timeout(WAIT_S), contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            reader, writer = await stack.enter_async_context(connection(running.ports.http))
            writer.write(request)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        answer = await answer_to(running.ports.http)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        assert rejected(running, "connections") == 1
    await running.until(lambda: rejected(running, "connections") == 1)
    assert (await running.http.get("/health")).status_code == 200


async def test_streams_of_one_connection_take_turns(running: Cluster) -> None:
    async with running.worker(answer=positional_answer("no end "), hold_after=2) as worker:
        stub: Any = serval_pb2_grpc.ServalStub(running.channel)
        request = serval_pb2.GenerateRequest(text="hello", sampling=serval_pb2.Sampling(max_tokens=50))
        first = stub.Generate(request, timeout=WAIT_S)
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.Generate(request, timeout=0.3).read()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(worker.submits) == 1
        first.cancel()
        assert (await stub.Generate(request, timeout=WAIT_S).read()).token_ids


@pytest.mark.parametrize("door", ["grpc", "link"])
async def test_a_tls_handshake_that_does_not_come(tmp_path: Path, door: str) -> None:
    async with secure(tmp_path, header_timeout_s=0.3) as one:
        assert await answer_to(getattr(one.ports, door)) == b""
