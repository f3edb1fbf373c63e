"""A thousand wrong requests: each is refused by name, and leaves the cluster as it was."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import psutil
import pytest
from cluster_clients import Ask, grpc_client
from cluster_harness import ClusterSpec, RunningCluster, client
from cluster_moves import Moves
from cluster_reference import Reference
from cluster_shared import Clusters

from protocol import serval_pb2, serval_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

COUNT = 1000
AT_ONCE = 16
MEMORY_GROWTH_MOST = 32 << 20
CONTEXT = 8192

Json = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A wrong body, and the field that the error must name (None: there is no field to name)."""

    content: bytes
    field: str | None


def raw(content: bytes) -> Callable[[Json], Bad]:
    return lambda base: Bad(content, None)


def wrong(field: str, value: Any, named: str = "") -> Callable[[Json], Bad]:
    """The base request with one field at `value`; the error names it, or `named`."""
    return lambda base: Bad(json.dumps({**base, field: value}).encode(), named or field)


def without(field: str) -> Callable[[Json], Bad]:
    return lambda base: Bad(json.dumps({name: value for name, value in base.items() if name != field}).encode(), field)


EVERYWHERE: list[Callable[[Json], Bad]] = [
    raw(b""),
    raw(b"{"),
    raw(b"\xff\xfe\x00"),
    raw(b"null"),
    raw(b"[1, 2, 3]"),
    raw(b'{"model": "tiny", "prompt": "x", "max_tokens": 5'),
    raw(b'{"a": ' * 2000),
    wrong("model", "gpt-4"),
    wrong("model", ""),
    wrong("model", 7),
    wrong("model", None),
    without("model"),
    wrong("max_tokens", -1),
    wrong("max_tokens", 0),
    wrong("max_tokens", 10**9),
    wrong("max_tokens", "10"),
    wrong("max_tokens", 1.5),
    wrong("max_tokens", True),
    wrong("temperature", -0.1),
    wrong("temperature", "hot"),
    wrong("top_p", 0),
    wrong("top_p", 1.01),
    wrong("top_k", -5),
    wrong("top_k", 5_203_417_591_601_195),
    wrong("min_p", 2),
    wrong("presence_penalty", 3),
    wrong("frequency_penalty", -2.5),
    wrong("repetition_penalty", 0),
    wrong("seed", -(2**63) - 1),
    wrong("seed", 2**63),
    wrong("stop", ""),
    wrong("stop", ["x"] * 17),
    wrong("stop", 5),
    wrong("stream", "yes"),
    wrong("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
    wrong("logit_bias", {"notatoken": 1}),
    wrong("logit_bias", {"99999": 1}),
    wrong("logit_bias", {"5": 101}),
    wrong("n", 0),
    wrong("n", 1000),
    wrong("best_of", 2),
    wrong("response_format", {"type": "xml"}, "response_format.type"),
    wrong("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    wrong("guided_regex", "("),
    wrong("guided_grammar", "start: missing"),
    wrong("no_such_field", 1),
]

COMPLETION: list[Callable[[Json], Bad]] = [
    *EVERYWHERE,
    without("prompt"),
    wrong("prompt", ""),
    wrong("prompt", []),
    wrong("prompt", None),
    wrong("prompt", 5),
    wrong("prompt", [1, "two"], "prompt[1]"),
    wrong("prompt", [-1], "prompt[0]"),
    wrong("prompt", [260]),
    wrong("prompt", ["one"] * 129),
    wrong("prompt", "x" * (CONTEXT + 1)),
    wrong("prompt", [1] * CONTEXT),
    wrong("logprobs", 21),
    wrong("echo", 1),
    wrong("tools", [{"type": "function"}]),
]

CHAT: list[Callable[[Json], Bad]] = [
    *EVERYWHERE,
    without("messages"),
    wrong("messages", []),
    wrong("messages", "hello"),
    wrong("messages", [{"role": "pirate", "content": "x"}], "messages[0].role"),
    wrong("messages", [{"role": "user"}], "messages[0].content"),
    wrong("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    wrong("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
    wrong("messages", [{"role": "user", "content": "x" * (CONTEXT + 1)}], "messages"),
    wrong("top_logprobs", 21),
    wrong("top_logprobs", 2),
    wrong("echo", True),
    wrong("tools", [{"type": "function"}], "tools[0].function"),
    wrong("tool_choice", "required"),
]


def bad_requests(cluster: RunningCluster) -> list[tuple[str, Bad]]:
    completion = {"model": cluster.model, "prompt": "hello", "max_tokens": 5}
    chat = {"model": cluster.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    kinds = [("/v1/completions", make(completion)) for make in COMPLETION]
    kinds += [("/v1/chat/completions", make(chat)) for make in CHAT]
    return list(itertools.islice(itertools.cycle(kinds), COUNT))


def assert_refused(response: httpx.Response, path: str, bad: Bad) -> None:
    where = f"{path} {bad.content[:120]!r}: {response.status_code} {response.text[:300]}"
    assert response.status_code == 400, where
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}, where
    assert error["type"] == "invalid_request_error", where
    assert error["message"], where
    if bad.field is not None:
        assert error["param"] == bad.field, where
        assert bad.field in error["message"], where


async def memory(cluster: RunningCluster) -> dict[str, int]:
    pids = {worker.name: worker.pid for worker in await cluster.workers()} | {"router": cluster.router_pid()}
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


async def test_a_thousand_bad_requests(clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
    cluster = clusters.get(tiny_spec)
    good = Ask.greedy(b"To be, or not to be, that is the question", 16, ignore_eos=True)
    gate = asyncio.Semaphore(AT_ONCE)
    async with grpc_client(cluster) as api, client() as http:
        answers = [await api.ask(good)]
        for path, bad in bad_requests(cluster)[:200]:  # what is allocated once is allocated now
            await http.post(f"{cluster.url}{path}", content=bad.content)
        await cluster.assert_idle()
        state, used = await _state(cluster), await memory(cluster)

        async def send(path: str, bad: Bad) -> None:
            async with gate:
                assert_refused(await http.post(f"{cluster.url}{path}", content=bad.content), path, bad)

        async with Moves(cluster) as moves:
            await asyncio.gather(*(send(path, bad) for path, bad in bad_requests(cluster)))

        assert moves.of("router", "rejections") == COUNT
        assert moves.of("router", "outcomes") == 0, "a refused request is none that was accepted"
        assert await _state(cluster) == state
        for name, now in (await memory(cluster)).items():
            assert now - used[name] < MEMORY_GROWTH_MOST, f"{name} grew by {now - used[name]} bytes"
        answers.append(await api.ask(good))
    tiny_reference.assert_same([good, good], answers)


async def _state(cluster: RunningCluster) -> dict[str, Any]:
    """Everything that a request could leave behind."""
    found = await cluster.scrape()
    return {
        name: (
            samples.by_label("serval_kv_blocks", "state"),
            samples.by_label("serval_kv_landing_blocks", "state"),
            samples.sum("serval_num_requests_running"),
            samples.sum("serval_num_requests_waiting"),
            samples.sum("serval_engine_steps_total"),
            samples.sum("serval_kv_transfer_bytes_total"),
            samples.by_label("serval_requests_total", "outcome"),
        )
        for name, samples in found.items()
    }


async def test_bad_requests_among_good_ones(clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
    cluster = clusters.get(tiny_spec)
    asks = [Ask.greedy([index, *range(200)], 20, ignore_eos=True) for index in range(8)]
    async with Moves(cluster) as moves, grpc_client(cluster) as api, client() as http:
        answers = [api.start(ask) for ask in asks]
        for path, bad in bad_requests(cluster)[:150]:
            assert_refused(await http.post(f"{cluster.url}{path}", content=bad.content), path, bad)
        await asyncio.gather(*(answer.done for answer in answers))

    tiny_reference.assert_same(asks, [answer.answer for answer in answers])
    assert moves.of("router", "outcomes") == len(asks)
    assert moves.of("router", "rejections") == 150


async def test_grpc_refuses_by_name_too(clusters: Clusters, tiny_spec: ClusterSpec) -> None:
    cluster = clusters.get(tiny_spec)
    fine = serval_pb2.TokenIds(ids=b"hello")
    bad = {
        "prompt": serval_pb2.GenerateRequest(),
        "text": serval_pb2.GenerateRequest(text=""),
        "token_ids": serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=[260])),
        "chat": serval_pb2.GenerateRequest(chat=serval_pb2.Chat()),
        "model": serval_pb2.GenerateRequest(model="gpt-4", token_ids=fine),
        "max_tokens": serval_pb2.GenerateRequest(token_ids=fine, sampling=serval_pb2.Sampling(max_tokens=0)),
        "temperature": serval_pb2.GenerateRequest(token_ids=fine, sampling=serval_pb2.Sampling(temperature=float("nan"))),
        "logprobs": serval_pb2.GenerateRequest(token_ids=fine, sampling=serval_pb2.Sampling(logprobs=21)),
        "stop": serval_pb2.GenerateRequest(token_ids=fine, stop=[""]),
    }
    async with Moves(cluster) as moves, grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub: Any = serval_pb2_grpc.ServalStub(channel)
        for field, request in bad.items():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in stub.Generate(request, timeout=30):
                    pass
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, field
            assert field in (refused.value.details() or ""), refused.value.details()
    assert moves.of("router", "outcomes") == 0
