"""Dollars of a real cluster: what requests account for is what its engines computed, also when workers die; the rest was idle."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_clients import Ask, GrpcClient, OpenAnswer, grpc_client
from cluster_harness import ClusterSpec, RunningCluster, until
from cluster_shared import Clusters
from paced_workers import pace

from serving import cli

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SETTLE_TIMEOUT_S = 60.0
POOLS = ("prefill", "decode")
USD_PER_HOUR = 2.0
ANSWER = 120
"""Tokens: seconds in which a worker can be met at its work."""
ROUNDS = 3
"""Of a kill of each pool, at another moment each time."""
READING_PERIOD_S = 0.25
"""Reports come that often."""

TOLERANCE = 0.001
"""Nothing is estimated, so nothing but what is read at two moments may differ."""

ReadBill = Callable[[RunningCluster], Any]


@pytest.fixture
def read_bill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ReadBill:
    """`serval cost --json`."""

    def read(cluster: RunningCluster) -> Any:
        monkeypatch.setattr("sys.argv", ["serval", "cost", "--url", cluster.url, "--json"])
        capsys.readouterr()
        assert cli.main() == 0
        return json.loads(capsys.readouterr().out)

    return read


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch, tiny_spec: ClusterSpec, tmp_path: Path) -> Iterator[RunningCluster]:
    """Two workers of each kind, slow enough to be killed at their work."""
    pace(monkeypatch, prompt_tokens_per_s=800, step_s=0.03)
    spec = ClusterSpec(tiny_spec.model, 2, 2).with_settings(decode__local_prefill_max_tokens=0, engine__dtype="float32")
    cluster = RunningCluster.start(spec, tmp_path / "log")
    try:
        yield cluster
    finally:
        cluster.stop()


async def test_requests_account_for_the_pools_less_idle_time(
    clusters: Clusters, tiny_spec: ClusterSpec, read_bill: ReadBill
) -> None:
    """Of answered requests and of cancelled ones, since the cluster began."""
    tiny = clusters.get(tiny_spec)
    before = read_bill(tiny)
    drawn = random.Random("bill")
    async with grpc_client(tiny) as grpc:
        await grpc.ask_all([ask(drawn, 32) for _ in range(8)])
        await cancel_some(grpc, drawn, 2)
    after = await balanced(read_bill, tiny, {"served", "failed"})
    assert after["usd_by_reason"]["served"] > before["usd_by_reason"].get("served", 0.0)
    assert after["usd_by_reason"]["failed"] > before["usd_by_reason"].get("failed", 0.0)
    assert sum(after["usd_by_tenant"].values()) == pytest.approx(sum(after["usd_by_reason"].values()))
    assert 0 < after["idle_usd"] < after["usd"]
    assert all(pool["workers"] == 1 and pool["usd_per_hour"] == 2.0 for pool in after["pools"].values())


@pytest.mark.long
async def test_so_they_do_when_workers_are_killed_at_their_work(paced: RunningCluster, read_bill: ReadBill) -> None:
    drawn = random.Random("faults")
    async with grpc_client(paced) as grpc:
        for pool in ("decode", "prefill") * ROUNDS:
            opened = [grpc.start(ask(drawn, ANSWER, 700)) for _ in range(6)]
            name = await one_at_work(paced, pool)
            await asyncio.sleep(drawn.uniform(0, 1))
            killed = await paced.kill_worker(name)
            await asyncio.gather(*(one.done for one in opened))
            assert all(len(one.answer.token_ids) == ANSWER for one in opened), "every answer is whole"
            await until(lambda killed=killed: paced.all_joined(without=killed.incarnation), f"{name} is back", 120.0)
    bill = await balanced(read_bill, paced, {"served", "lost"})
    assert bill["usd_by_reason"]["lost"] > 0 and bill["usd_by_reason"]["served"] > 0
    assert 0 < bill["usd_by_tenant"][""] <= bill["usd_by_reason"]["lost"], "of most that is lost nobody knows whose it was"


async def one_at_work(cluster: RunningCluster, pool: str) -> str:
    """A worker of the pool that has open requests, for which it has reported time."""
    found: list[str] = []

    async def is_there() -> bool:
        for worker in await cluster.workers():
            if worker.name.startswith(pool):
                samples = await cluster.scrape_worker(worker)
                if samples.sum("serval_num_requests_running") and samples.sum("serval_engine_busy_seconds_total") > 0.5:
                    found.append(worker.name)
        return bool(found)

    await until(is_there, f"one of {pool} has computed for some time", 60.0)
    await asyncio.sleep(READING_PERIOD_S)
    return found[0]


async def balanced(read_bill: ReadBill, cluster: RunningCluster, reasons: set[str]) -> Any:
    """The bill, once it has these reasons and requests account for what the engines computed. The last of a cancelled answer, and
    of a dead worker's, is told a moment after the answer's end."""
    await cluster.assert_idle(SETTLE_TIMEOUT_S)
    bill: Any = None

    async def is_balanced() -> bool:
        nonlocal bill
        computed_s = {name: await cluster.total("serval_pool_busy_seconds_total", "router", pool=name) for name in POOLS}
        bill = read_bill(cluster)
        accounted, pools_less_idle = sum(bill["usd_by_reason"].values()), bill["usd"] - bill["idle_usd"]
        by_pool = {name: pool["requests_usd"] * 3600 / USD_PER_HOUR for name, pool in bill["pools"].items()}
        return (
            reasons <= bill["usd_by_reason"].keys()
            and by_pool == pytest.approx(computed_s, rel=TOLERANCE)
            and bool(accounted == pytest.approx(pools_less_idle, rel=TOLERANCE))
        )

    try:
        await until(is_balanced, "requests account for what was computed", SETTLE_TIMEOUT_S)
    finally:
        print(json.dumps(bill))
    return bill


def ask(drawn: random.Random, max_tokens: int, prompt_tokens: int | None = None) -> Ask:
    prompt = [drawn.randrange(256) for _ in range(prompt_tokens or drawn.randrange(20, 200))]
    return Ask.greedy(prompt, max_tokens, ignore_eos=True)


async def cancel_some(grpc: GrpcClient, drawn: random.Random, count: int) -> None:
    """Answers that their clients leave when they have begun."""
    opened: list[OpenAnswer] = [grpc.start(ask(drawn, 400)) for _ in range(count)]
    async with asyncio.timeout(120):
        for one in opened:
            await one.has_begun.wait()
    for one in opened:
        one.cancel()
    await asyncio.gather(*(one.done for one in opened), return_exceptions=True)
