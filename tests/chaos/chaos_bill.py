"""Whether requests account for all that the engines computed, to the dollar, when nothing is open any more."""

import asyncio
import time

from cluster_harness import RunningCluster

POOLS = ("prefill", "decode")
TOLERANCE = 0.001
"""What is read at two moments may differ; nothing else is estimated."""
SETTLE_TIMEOUT_S = 30.0
"""A worker says four times a second what it could tell nobody; the last may wait for an abort that nobody answers."""

Bill = dict[str, dict[str, float]]


async def read_bill(cluster: RunningCluster) -> Bill:
    """By pool, in seconds of a worker: what requests account for, what of it is lost, what the engines computed."""
    router = (await cluster.scrape())["router"]
    found = {}
    for pool in POOLS:
        usd_per_s = router.sum("serval_worker_hour_cost_dollars", pool=pool) / 3600
        found[pool] = {
            "requests_s": router.sum("serval_cost_dollars_total", pool=pool) / usd_per_s,
            "lost_s": router.sum("serval_cost_dollars_total", pool=pool, reason="lost") / usd_per_s,
            "computed_s": router.sum("serval_pool_busy_seconds_total", pool=pool),
        }
    return found


async def settled_bill(cluster: RunningCluster) -> tuple[Bill, list[str]]:
    """The bill, and what is wrong with it, once nothing is or the time is over."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        bill = await read_bill(cluster)
        wrong = [f"{pool}: {one}" for pool, one in bill.items() if not _balances(one)]
        if not wrong or time.monotonic() > deadline:
            return bill, [f"requests do not account for what was computed: {one}" for one in wrong]
        await asyncio.sleep(0.5)


def _balances(one: dict[str, float]) -> bool:
    return abs(one["requests_s"] - one["computed_s"]) <= TOLERANCE * one["computed_s"]
