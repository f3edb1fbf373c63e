"""API keys at both fronts of a real router, also while their file changes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from protocol import serval_pb2, serval_pb2_grpc
from serving.keys import add_key
from tests.integration.router_support import WAIT_S
from tests.integration.security_support import PROMPT, Secure, secure

UNKNOWN = "sk-serval-" + "A" * 43


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Secure]:
    async with secure(tmp_path) as one, one.worker("prefill"), one.worker("decode"):
        yield one


async def generate(one: Secure, authorization: str | None) -> list[serval_pb2.GenerateResponse]:
    metadata = [("authorization", authorization)] if authorization else []
    async with one.channel() as channel:
        stub: Any = serval_pb2_grpc.ServalStub(channel)
        request = serval_pb2.GenerateRequest(text=PROMPT, sampling=serval_pb2.Sampling(max_tokens=4))
        return [answer async for answer in stub.Generate(request, metadata=metadata, timeout=WAIT_S)]


async def reloads(one: Secure, result: str, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while one.metrics.value("serval_keys_reloads_total", result=result) < count:  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.02)


async def test_a_key_opens_both_fronts(running: Secure) -> None:
    assert (await running.ask()).json()["usage"]["completion_tokens"] == 4
    assert (await generate(running, f"Bearer {running.key}"))[-1].HasField("finish")
    assert (await generate(running, f"bearer  {running.key} "))[-1].HasField("finish")


@pytest.mark.parametrize("key", [None, UNKNOWN, "x", "x" * 5000])
async def test_without_a_known_key_both_fronts_refuse_and_count(running: Secure, key: str | None) -> None:
    async with running.http(None) as http:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        for method, path in (("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
            refused = await http.request(method, path, headers=headers, json={"prompt": PROMPT})
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
            assert not key or key not in refused.text
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await generate(running, None if key is None else f"Bearer {key}")
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert running.metrics.value("serval_rejections_total", reason="unauthenticated", tenant="default") >= 3
    assert running.metrics.value("serval_requests_total", outcome="stop") == 0


@pytest.mark.parametrize("header", ["Basic c2VjcmV0OnNlY3JldA==", "Bearer", "{key}", "Token {key}"])
async def test_only_bearer_counts(running: Secure, header: str) -> None:
    async with running.http(None) as http:
        refused = await http.get("/v1/models", headers={"Authorization": header.format(key=running.key)})
    assert refused.status_code == 401


async def test_keys_come_and_go_while_the_router_runs(running: Secure) -> None:
    second = add_key(running.keys_file, "second", "sales")
    await reloads(running, "ok", 1)
    assert (await running.ask(second)).status_code == 200

    settings = yaml.safe_load(running.keys_file.read_text())
    settings["keys"] = [key for key in settings["keys"] if key["name"] == "second"]
    running.keys_file.write_text(yaml.safe_dump(settings))
    await reloads(running, "ok", 2)
    assert (await running.ask()).status_code == 401
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await generate(running, f"Bearer {running.key}")
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (await running.ask(second)).status_code == 200


@pytest.mark.parametrize("content", [b"keys: [", b"keys: 3", b"\xff\xfe", None])
async def test_a_broken_file_leaves_the_keys_as_they_are(running: Secure, content: bytes | None) -> None:
    if content is None:
        running.keys_file.unlink()
    else:
        running.keys_file.write_bytes(content)
    await reloads(running, "failed", 1)
    assert (await running.ask()).status_code == 200
    assert (await running.ask(UNKNOWN)).status_code == 401


async def test_operators_need_no_key(running: Secure) -> None:
    """As documented in docs/security.md: what says nothing of prompts is open to whoever reaches the port."""
    async with running.http(None) as http:
        for path in ("/health", "/ready", "/version", "/metrics", "/workers", "/docs", "/openapi.json"):
            found = await http.get(path)
            assert found.status_code == 200, path
            assert running.key not in found.text
