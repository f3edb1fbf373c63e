"""Two routers over the same pools: real routers, real workers, one process. Either places by what the other's requests left."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from decode.config import DecodeConfig
from decode.worker import DecodeWorker
from engine.config import EngineConfig
from engine.tiny import write_tiny_llama
from kvtransfer.config import TransferConfig
from prefill.config import PrefillConfig
from prefill.worker import PrefillWorker
from router.config import RouterConfig
from router.router import Router
from router.workers import Worker
from telemetry.metrics import Metrics
from worker.config import LinkConfig
from worker.spec import WorkerSpec

WAIT_S = 20.0
SYSTEM = [7 * position % 250 for position in range(160)]
"""Ten blocks that all prompts begin with."""


@dataclass
class Front:
    """One router and a client for it."""

    router: Router
    metrics: Metrics
    http: httpx.AsyncClient

    async def ask(self, prompt: list[int], **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the answer, why it was placed where it was)."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | settings
        answer = await self.http.post("/v1/completions", json=body, headers={"x-serval-debug": "1"})
        assert answer.status_code == 200, answer.text
        return answer.json(), json.loads(answer.headers["x-serval-placement"])

    def worker(self, name: str) -> Worker:
        assert self.router.members is not None
        return next(worker for worker in self.router.members.all if worker.name == name)

    def knows(self, workers: int) -> bool:
        return self.router.members is not None and len(self.router.members.all) == workers


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the conditions are other objects' state
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@contextlib.asynccontextmanager
async def front(folder: Path, name: str) -> AsyncIterator[tuple[Front, str]]:
    """The front and the address that workers dial."""
    metrics = Metrics("router", name)
    config = RouterConfig(name=name, model="tiny", model_dir=folder, http_port=0, grpc_port=0, link_port=0)
    router = Router(config, metrics)
    ports = await router.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http}", timeout=WAIT_S) as http:
        try:
            yield Front(router, metrics, http), f"127.0.0.1:{ports.link}"
        finally:
            await router.stop(1)


@contextlib.asynccontextmanager
async def workers(folder: Path, routers: tuple[str, ...], prefill: int = 2, **decode: Any) -> AsyncIterator[None]:
    engine = EngineConfig(dtype="float32", device="cpu", threads=1, kv_memory_bytes=8 << 20)

    def spec(name: str) -> WorkerSpec:
        transfer = TransferConfig(landing_bytes=8 << 20)
        link = LinkConfig(load_report_period_s=0.05, reconnect_min_s=0.01, reconnect_max_s=0.1)
        return WorkerSpec(name, "127.0.0.1", routers, "tiny", folder, engine, transfer, link)

    started: list[DecodeWorker | PrefillWorker] = [
        DecodeWorker(spec("decode-0"), DecodeConfig(**decode), Metrics("decode", "decode-0"))
    ]
    for number in range(prefill):
        name = f"prefill-{number}"
        started.append(PrefillWorker(spec(name), PrefillConfig(), Metrics("prefill", name)))
    try:
        for worker in started:
            await worker.start()
        yield
    finally:
        for worker in started:
            await worker.stop(5)


async def test_each_router_places_by_what_the_others_requests_left(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first, first_address = await stack.enter_async_context(front(folder, "router-0"))
        second, second_address = await stack.enter_async_context(front(folder, "router-1"))
        addresses = (first_address, second_address)
        await stack.enter_async_context(workers(folder, addresses, local_prefill_max_tokens=0))
        await until(lambda: first.knows(3) and second.knows(3))

        _, placed = await first.ask([*SYSTEM, *range(40)])
        prefill = placed["prefill"]["worker"]
        # 200 tokens: twelve full blocks, at the prefill and at the decode worker.
        await until(lambda: second.metrics.value("serval_prefix_index_entries") >= 24)
        # The cache is told at once, the load four times a second: an old report may still have that prompt in the queue.
        await until(lambda: second.worker(prefill).queued_tokens == 0)

        answer, placed = await second.ask([*SYSTEM, *range(100, 140)])
        assert (placed["prefill"]["worker"], placed["prefill"]["reason"]) == (prefill, "prefix")
        cached = {one["worker"]: one["cached_tokens"] for one in placed["prefill"]["candidates"]}
        assert cached[prefill] == len(SYSTEM) and sum(cached.values()) == len(SYSTEM)
        assert placed["decode"]["candidates"][0]["cached_tokens"] == len(SYSTEM)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(SYSTEM)
        value = second.metrics.value
        assert value("serval_placements_total", policy="prefix_aware", pool="prefill", reason="prefix") == 1
        assert value("serval_placements_total", policy="prefix_aware", pool="decode", reason="only_one") == 1


async def test_each_router_sees_the_others_load_and_both_stay_right_when_it_ends(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first, first_address = await stack.enter_async_context(front(folder, "router-0"))
        second, second_address = await stack.enter_async_context(front(folder, "router-1"))
        await stack.enter_async_context(workers(folder, (first_address, second_address), prefill=1))
        await until(lambda: first.knows(2) and second.knows(2))
        long = asyncio.create_task(first.ask([1, 2, 3] * 20, max_tokens=1500))
        await until(lambda: second.worker("decode-0").load_elsewhere == 1)
        await until(lambda: first.worker("decode-0").load.running == 1)
        assert first.worker("decode-0").load_elsewhere == 0, "that one is its own"
        await second.ask([4, 5, 6] * 20)
        await long
        await until(lambda: first.worker("decode-0").load.running == 0 and second.worker("decode-0").load.running == 0)
        for one in (first, second):
            worker = one.worker("decode-0")
            assert (worker.requests, worker.queued_tokens, worker.computing_tokens) == (0, 0, 0)


async def test_workers_say_what_they_are_and_how_fast_they_were(folder: Path) -> None:
    async with front(folder, "router-0") as (only, address), workers(folder, (address,), prefill=1, local_prefill_max_tokens=0):
        await until(lambda: only.knows(2))
        for start in range(3):
            await only.ask([start, *SYSTEM], max_tokens=20)
        decode, prefill = only.worker("decode-0"), only.worker("prefill-0")
        await until(lambda: prefill.load.prefill_tokens_per_s > 0 and decode.load.step_s > 0 < decode.load.transfer_bytes_per_s)
        assert (decode.hello.max_sequences, decode.hello.kv_token_bytes) == (64, 4 * 64 * 4)
        assert (decode.load.prefill_tokens_per_s, decode.load.local_prefill_max_tokens) == (0, 0)
        assert (decode.load.queued_tokens, prefill.load.queued_tokens) == (0, 0)
        assert decode.predicted_itl_s(usual_s=9.0) == pytest.approx(decode.load.step_s, rel=0.8)


async def test_a_short_rest_is_left_to_the_decode_worker(folder: Path) -> None:
    async with (
        front(folder, "router-0") as (only, address),
        workers(folder, (address,), prefill=1, local_prefill_max_tokens=64),
    ):
        await until(lambda: only.knows(2) and only.worker("decode-0").load.local_prefill_max_tokens == 64)
        _, placed = await only.ask([*SYSTEM, *range(40)])
        assert placed["prefill"]["worker"] == "prefill-0"
        await until(lambda: only.metrics.value("serval_prefix_index_entries") >= 24)
        answer, placed = await only.ask([*SYSTEM, *range(100, 140)])
        assert (placed["prefill"]["worker"], placed["prefill"]["reason"]) == (None, "local")
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(SYSTEM)
        assert only.worker("decode-0").computing_tokens == 0
