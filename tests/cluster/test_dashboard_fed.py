"""The page's real files in headless Chromium, fed with documents of our own: what no real cluster shows at will."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from chromium import CHROMIUM, Page, page_at
from fastapi import FastAPI

from router.dashboard.page import add_dashboard
from router.dashboard.state import RouterState, State
from router.dashboard.view import Patience, state_of
from serving.cost_cli import _dollars
from telemetry.metrics import Metrics

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
ROUTER = RouterState(name="router-0", model="tiny", serval_version="1", why_not_ready=None, slo_ttft_s=None, slo_itl_s=None)
PATIENCE = Patience(silence_s=1.5, stall_s=30.0)
PHONE = (360, 740)
READY = "document.getElementById('readiness').textContent === 'ready'"

BE_HIDDEN = """(hidden => {
    Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
    document.dispatchEvent(new Event('visibilitychange'));
})"""
# Each ask takes a while; counted are those that are open at once, and all.
COUNT_ASKS = """(() => {
    const ask = window.fetch;
    [window.open_asks, window.most_asks, window.all_asks] = [0, 0, 0];
    window.fetch = async (...what) => {
        window.all_asks += 1;
        window.most_asks = Math.max(window.most_asks, ++window.open_asks);
        try {
            await new Promise(go => setTimeout(go, 300));
            return await ask(...what);
        } finally {
            window.open_asks -= 1;
        }
    };
})()"""


class Fed:
    """A router's page without a router."""

    def __init__(self, port: int, metrics: Metrics) -> None:
        self.url = f"http://127.0.0.1:{port}/dashboard"
        self.metrics = metrics


@pytest.fixture
async def fed() -> AsyncIterator[Fed]:
    metrics, app = Metrics("router", "router-0"), FastAPI()
    add_dashboard(app, lambda: state(metrics).model_dump_json().encode())
    server = _Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.02)
    try:
        yield Fed(server.servers[0].sockets[0].getsockname()[1], metrics)
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """Signals stay pytest's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def state(metrics: Metrics) -> State:
    return state_of(metrics, (), ROUTER, PATIENCE, 0.0, at=time.time(), started_at=1000)


async def test_the_page_fed(fed: Fed, tmp_path: Path) -> None:
    async with page_at(fed.url, tmp_path / "profile") as page:
        await page.until(READY)
        await a_window_after_a_gap_is_no_moment(page)
        await dollars_are_written_as_serval_cost_writes_them(page)
        await very_large_figures_fit_a_phone(page, fed)
        await switching_tabs_multiplies_no_polls(page)
        await a_hidden_page_accuses_nobody(page)
        assert page.complaints == []


async def a_window_after_a_gap_is_no_moment(page: Page) -> None:
    """Which document is the base, by its time, when documents have come at these times."""
    came: dict[str, tuple[list[int], int | None]] = {
        "too few": ([0, 1, 3], None),
        "a young page": ([0, 1, 3, 5], 0),
        "in the middle": (list(range(0, 101)), 40),
        "after two minutes away": ([0, 1, 2, 3, 4, 5, 125], 5),
        "two seconds later": ([0, 1, 2, 3, 4, 5, 125, 126, 127], 5),
        "once there is a window again": ([0, 1, 2, 3, 4, 5, 125, 126, 127, 128, 129], 125),
        "after all is forgotten": ([0, 1, 2, 3, 4, 5, 1000], None),
    }
    script = """import('./dashboard/history.js').then(({History}) => Object.fromEntries(
        Object.entries(CAME).map(([name, times]) => {
            const history = new History();
            times.forEach(at => history.add({at, started_at: -1000}));
            return [name, history.base(60)?.at ?? null];
        })))"""
    found = await page.run(script.replace("CAME", json.dumps({name: times for name, (times, _) in came.items()})))
    # A window of 60 s reaches half a second further: polls do not come on the second.
    assert found == {name: base for name, (_, base) in came.items()}


async def dollars_are_written_as_serval_cost_writes_them(page: Page) -> None:
    expected = {
        1234567.891: "$1,234,567.89",
        12.3: "$12.30",
        1.0: "$1.00",
        0.35: "$0.35",
        0.09994: "$0.09994",
        0.00012345: "$0.0001234",
        0.000012: "$0.000012",
        0.000001: "$0.000001",
        0.000000001: "<$0.000001",
        0.0: "$0",
        1e15: "$1,000,000,000,000,000.00",
    }
    amounts = json.dumps(list(expected))
    found: list[Any] = await page.run(f"import('./dashboard/figures.js').then(({{dollars}}) => {amounts}.map(dollars))")
    assert dict(zip(expected, found, strict=True)) == expected
    # Below a ten-thousandth the command writes an exponent.
    told = {usd: f"${_dollars(usd)}" for usd in expected if usd == 0 or usd >= 1e-4}
    assert told == {usd: expected[usd] for usd in told}


async def very_large_figures_fit_a_phone(page: Page, fed: Fed) -> None:
    metrics = fed.metrics
    metrics.worker_hour_cost.of(pool="decode").set(98_765.4321)
    metrics.workers.of(pool="decode").set(1000)
    metrics.pool_cost.read_from(lambda: {("decode",): 1e9})
    metrics.generation_tokens.of(tenant="t" * 64).inc(9_876_543_210_123)
    metrics.requests.of(outcome="stop", tenant="t" * 64).inc(123_456_789)
    metrics.cost.of(pool="decode", tenant="t" * 64, reason="served").inc(1_234_567.891)
    metrics.cost.of(pool="decode", tenant="", reason="lost").inc(0.000000001)
    await page.looks(*PHONE, is_phone=True)
    await page.until("document.querySelectorAll('#tenants tbody tr').length === 2")
    rows = await page.run("[...document.querySelectorAll('#tenants tbody tr')].map(row => row.innerText.split(/\\s+/))")
    assert rows == [
        ["t" * 64, "123,456,789", "9,876,543,210,123", "$1,234,567.89"],
        ["nobody", "0", "0", "<$0.000001"],
    ]
    assert await page.run("document.documentElement.scrollWidth") == PHONE[0]
    assert await page.run("document.querySelector('#tenants tbody th').offsetWidth") >= 100  # not one letter a line


async def switching_tabs_multiplies_no_polls(page: Page) -> None:
    await page.run(COUNT_ASKS)
    for _ in range(10):
        await page.run(f"{BE_HIDDEN}(true)")
        await page.run(f"{BE_HIDDEN}(false)")
    assert await page.run("window.all_asks") >= 1
    before = await page.run("window.all_asks")
    await asyncio.sleep(2.6)  # two periods of 1.3 s
    assert 1 <= await page.run("window.all_asks") - before <= 3
    assert await page.run("window.most_asks") == 1


async def a_hidden_page_accuses_nobody(page: Page) -> None:
    """Its figures grow old, since it asks nothing; the router has not failed."""
    await page.run(f"{BE_HIDDEN}(true)")
    await page.until("document.body.classList.contains('is-stale')")
    assert await page.run("document.getElementById('banner').hidden")
    assert await page.run(READY)
    assert (await page.run("document.title")).startswith("tiny ")
    await page.run(f"{BE_HIDDEN}(false)")
    await page.until("!document.body.classList.contains('is-stale')")
