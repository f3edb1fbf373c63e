"""Tenants over the real fronts and the real link: limits, turns, what refusals say."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protocol import serval_pb2, serval_pb2_grpc
from router.tenants.keys import hash_of
from tests.integration.router_support import MODEL, WAIT_S, Cluster, FakeWorker, cluster, positional_answer, write_model_folder

KEYS = {tenant: f"sk-serval-{tenant}" for tenant in ("greedy", "modest")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path)


def keys_file(folder: Path, **limits: Any) -> Path:
    keys = [{"name": tenant, "tenant": tenant, "sha256": hash_of(key)} for tenant, key in KEYS.items()]
    path = folder / "keys.yaml"
    path.write_text(json.dumps({"keys": keys, "tenants": {tenant: limits.get(tenant, {}) for tenant in KEYS}}))
    return path


async def ask(running: Cluster, tenant: str, **body: Any) -> Any:
    whole = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 2, **body}
    return await running.http.post("/v1/completions", json=whole, headers={"authorization": f"Bearer {KEYS[tenant]}"})


def tenant_of(submit: Any) -> str:
    """The tests' tenants ask with prompts of their own."""
    return "modest" if submit.prompt[0] == 9 else "greedy"


async def test_one_at_twenty_times_its_limit_gets_its_limit_and_the_other_everything(folder: Path) -> None:
    keys = keys_file(folder, greedy={"requests_per_minute": 5})
    async with cluster(folder, keys_file=keys) as running, running.worker(answer=positional_answer("the"), max_sequences=2):
        flood = [asyncio.create_task(ask(running, "greedy")) for _ in range(100)]
        others = [await ask(running, "modest") for _ in range(10)]
        refused = [response for response in await asyncio.gather(*flood) if response.status_code != 200]
        assert [response.status_code for response in others] == [200] * 10
        assert {response.status_code for response in refused} == {429}
        assert 95 >= len(refused) >= 94, "five at once, and one more for every twelve seconds"
        error = refused[0].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")
        assert "requests_per_minute" in error["message"] and "greedy" in error["message"]
        assert 1 <= int(refused[0].headers["retry-after"]) <= 12
        value = running.metrics.value
        assert value("serval_rejections_total", reason="requests_per_minute", tenant="greedy") == len(refused)
        assert value("serval_rejections_total", tenant="modest") == 0
        assert value("serval_requests_total", tenant="modest", outcome="length") == 10
        assert value("serval_time_to_first_token_seconds_count", tenant="modest") == 10
        assert value("serval_generation_tokens_total", tenant="greedy") == 2 * (100 - len(refused))


async def test_who_asks_for_little_waits_for_one_turn_and_not_for_a_flood(folder: Path) -> None:
    async with (
        cluster(folder, keys_file=keys_file(folder), decode_overcommit=0) as running,
        running.worker(max_sequences=2) as worker,
    ):
        flood = [asyncio.create_task(ask(running, "greedy")) for _ in range(40)]
        await running.until(lambda: running.metrics.value("serval_queue_length", tenant="greedy") == 38)
        few = [asyncio.create_task(ask(running, "modest", prompt=[9, 2, 3])) for _ in range(5)]
        await running.until(lambda: running.metrics.value("serval_queue_length", tenant="modest") == 5)
        await answer_all(worker, len(flood) + len(few))
        assert {response.status_code for response in await asyncio.gather(*flood, *few)} == {200}
        order = [tenant_of(submit) for submit in worker.submits]
        places = [place for place, tenant in enumerate(order) if tenant == "modest"]
        assert places[0] <= 4, "at most two were at the worker, and one of the flood's had the turn before"
        assert places[-1] <= 4 + 2 * 4, "every second turn"


async def answer_all(worker: FakeWorker, count: int) -> None:
    for _ in range(count):
        submit = await worker.next_submit()
        worker.say_tokens(submit.request, [5, 6])
        worker.say_ended(submit.request, "length")


async def test_a_full_cluster_says_503_and_when_to_retry(folder: Path) -> None:
    async with cluster(folder, queue_timeout_s=0.2, decode_overcommit=0) as running, running.worker(max_sequences=1) as worker:
        body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 2}
        first = asyncio.create_task(running.http.post("/v1/completions", json=body))
        submit = await worker.next_submit()
        response = await running.http.post("/v1/completions", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert "queue_timeout_s" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) == 1, "whole seconds, rounded up"
        worker.say_ended(submit.request, "length")
        assert (await first).status_code == 200


async def test_grpc_says_the_same_in_its_words(folder: Path) -> None:
    keys = keys_file(folder, greedy={"max_concurrent": 1})
    async with cluster(folder, keys_file=keys) as running, running.worker() as worker:
        stub: Any = serval_pb2_grpc.ServalStub(running.channel)
        request = serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=[1, 2, 3]))
        metadata = (("authorization", f"Bearer {KEYS['greedy']}"),)
        first = stub.Generate(request, metadata=metadata, timeout=WAIT_S)
        submit = await worker.next_submit()
        with pytest.raises(grpc.aio.AioRpcError, match="max_concurrent") as refused:
            await stub.Generate(request, metadata=metadata, timeout=WAIT_S).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(dict(refused.value.trailing_metadata())["retry-after"]) > 0
        worker.say_tokens(submit.request, [5])
        worker.say_ended(submit.request, "length")
        assert [message async for message in first][-1].finish.figures.decode_worker == "decode-0"


async def test_new_limits_in_the_keys_file_hold_without_a_restart(folder: Path) -> None:
    keys = keys_file(folder, greedy={"requests_per_minute": 1})
    async with cluster(folder, keys_file=keys) as running, running.worker(answer=positional_answer("the")):
        assert [(await ask(running, "greedy")).status_code for _ in range(2)] == [200, 429]
        keys_file(folder, greedy={"requests_per_minute": 3})
        await running.until(lambda: running.metrics.value("serval_keys_reloads_total", result="ok") == 1)
        assert [(await ask(running, "greedy")).status_code for _ in range(3)] == [200, 200, 429], "one was used before"


async def test_answers_to_one_prompt_follow_the_first_to_its_worker(folder: Path) -> None:
    async with cluster(folder) as running, running.worker(name="a") as a, running.worker(name="b") as b:
        body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 3, "n": 3}
        asking = asyncio.create_task(running.http.post("/v1/completions", json=body))
        await running.until(lambda: bool(a.submits or b.submits))
        first, other = (a, b) if a.submits else (b, a)
        submit = await first.next_submit()
        first.say_tokens(submit.request, [5])
        await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 1)
        assert len(a.submits) + len(b.submits) == 1, "the prompt may still be on its way"
        first.say_tokens(submit.request, [6])
        siblings = [await first.next_submit() for _ in range(2)]
        assert other.submits == []
        assert len({each.sampling.seed for each in (submit, *siblings)}) == 3
        for each in (submit, *siblings):
            first.say_ended(each.request, "length")
        assert len((await asking).json()["choices"]) == 3
