"""The alert on the error budget in a real overload: it comes, it is true, and it goes.

The rules are the service's own; only their windows are shortened (`kubernetes.slo.window_scale`), so that an hour is a minute.
"""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from observed_cluster import Observed, observed_cluster, until

from k8s.config import SloConfig

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(420)]
SLO = SloConfig(window_scale=1 / 60)
ROOM = ("router.max_waiting=2", "engine.max_sequences=2", "router.decode_overcommit=0")
CLIENTS = 24
BURNS = {("ServalErrorBudgetBurns", "fast"), ("ServalErrorBudgetBurns", "slow")}


async def test_the_alert_fires_in_an_overload_and_clears_after(tmp_path: Path) -> None:
    async with observed_cluster(tmp_path, SLO, *ROOM) as observed:
        await until(lambda: is_computed(observed))
        assert not BURNS & await observed.firing()

        refused = await overload_until_it_fires(observed)
        share = await value(observed, "serval:errors:share5m")
        assert refused[503] > 0
        assert share > 14.4 * (1 - SLO.goal)

        # The short windows, 5 s and half a minute, have to be well again; the fast burn's is the first.
        await until(lambda: has_gone(observed, "fast"))
        await until(lambda: has_gone(observed, "slow"))
        assert await value(observed, "serval:errors:share5m") == 0
        assert await value(observed, "serval:errors:share1h") > 0


async def overload_until_it_fires(observed: Observed) -> Counter[int]:
    """More clients than there is room for; each asks again at once. The statuses that they got."""
    statuses: Counter[int] = Counter()

    async def client() -> None:
        while True:
            statuses[await observed.ask(max_tokens=64)] += 1

    async def all_fire() -> bool:
        return await observed.firing() >= BURNS

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    try:
        await until(all_fire)
    finally:
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return statuses


async def is_computed(observed: Observed) -> bool:
    """Every window has seen requests end well, and no rule is still to be computed."""
    return await value(observed, "serval:errors:share6h") == 0 and not any(
        rule["health"] == "unknown" for rule in await observed.rules()
    )


async def has_gone(observed: Observed, burn: str) -> bool:
    return ("ServalErrorBudgetBurns", burn) not in await observed.firing()


async def value(observed: Observed, series: str) -> float:
    """-1 where there is none."""
    found = (await observed.get(f"query?query={series}"))["result"]
    return float(found[0]["value"][1]) if found else -1.0
