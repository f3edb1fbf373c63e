"""Dollars of a real cluster: what requests account for is what its engines computed, and the rest was idle."""

import asyncio
import json
import random
from typing import Any

import pytest
from cluster_clients import Ask, GrpcClient, OpenAnswer, grpc_client
from cluster_harness import ClusterSpec, RunningCluster, until
from cluster_shared import Clusters

from serving import cli

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

CANCELLED = 3


@pytest.fixture
def tiny(clusters: Clusters, tiny_spec: ClusterSpec) -> RunningCluster:
    return clusters.get(tiny_spec)


async def test_requests_account_for_the_pools_less_idle_time_within_one_percent(
    tiny: RunningCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of answered requests and of cancelled ones, since the cluster began."""

    def read_bill() -> Any:
        monkeypatch.setattr("sys.argv", ["serval", "cost", "--url", tiny.url, "--json"])
        assert cli.main() == 0
        return json.loads(capsys.readouterr().out)

    before = read_bill()
    drawn = random.Random("bill")
    async with grpc_client(tiny) as grpc:
        await grpc.ask_all([ask(drawn, 64) for _ in range(16)])
        await cancel_some(grpc, drawn)

    def balanced() -> bool:
        bill = read_bill()
        accounted = sum(bill["usd_by_reason"].values())
        pools_less_idle = bill["usd"] - bill["idle_usd"]
        return bool(accounted == pytest.approx(pools_less_idle, rel=0.01))

    # The cost of a cancelled answer is known when its worker has said it.
    await until(balanced, "requests account for what was computed", 20.0)
    after = read_bill()
    assert after["usd_by_reason"]["served"] > before["usd_by_reason"].get("served", 0.0)
    assert after["usd_by_reason"]["failed"] > before["usd_by_reason"].get("failed", 0.0)
    assert sum(after["usd_by_tenant"].values()) == pytest.approx(sum(after["usd_by_reason"].values()))
    assert 0 < after["idle_usd"] < after["usd"]
    assert all(pool["workers"] == 1 and pool["usd_per_hour"] == 2.0 for pool in after["pools"].values())


def ask(drawn: random.Random, max_tokens: int) -> Ask:
    return Ask.greedy([drawn.randrange(256) for _ in range(drawn.randrange(20, 400))], max_tokens, ignore_eos=True)


async def cancel_some(grpc: GrpcClient, drawn: random.Random) -> None:
    """Answers that their clients leave when they have begun."""
    opened: list[OpenAnswer] = [grpc.start(ask(drawn, 400)) for _ in range(CANCELLED)]
    async with asyncio.timeout(60):
        for one in opened:
            await one.has_begun.wait()
    for one in opened:
        one.cancel()
    await asyncio.gather(*(one.done for one in opened), return_exceptions=True)
