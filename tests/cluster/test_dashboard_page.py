"""/dashboard in headless Chromium, on a real cluster: figures as in /metrics, a phone's width, and what is old is called old."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, Page, page_at
from cluster_harness import ClusterSpec, RunningCluster, client
from cluster_samples import Samples
from cluster_shared import Clusters

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]
PHONE = (360, 740)
DESKTOP = (1280, 900)
SINCE_START = "document.querySelector('input[name=window][value=\"0\"]').click()"
CLIENTS = 4


@pytest.fixture
async def observed(clusters: Clusters, tiny_spec: ClusterSpec) -> AsyncIterator[RunningCluster]:
    """A cluster of its own: the test stops it."""
    cluster = clusters.start(tiny_spec.with_settings(router__slo_ttft_s=30.0, router__slo_itl_s=0.000001))
    try:
        yield cluster
    finally:
        if cluster.is_running:
            cluster.stop()


async def test_the_page(observed: RunningCluster, tmp_path: Path) -> None:
    async with page_at(f"{observed.url}/dashboard", tmp_path / "profile") as page:
        await page.looks(*DESKTOP)
        await page.until("document.getElementById('readiness').textContent === 'ready'")
        await under_load_it_shows_what_runs(page, observed)
        await page.screenshot(tmp_path / "dashboard.png")
        await page.looks(*DESKTOP, scheme="dark")
        await page.screenshot(tmp_path / "dashboard-dark.png")
        await when_idle_every_figure_is_that_of_metrics(page, observed)
        await it_fits_a_phone(page, tmp_path)
        await a_router_that_stands_still_makes_it_stale(page, observed)
        assert page.complaints == []
        observed.stop()
        await page.until("document.body.classList.contains('is-stale')")
        assert "no connection" in await text(page, "banner")
        assert (tmp_path / "dashboard.png").stat().st_size > 10_000


async def under_load_it_shows_what_runs(page: Page, cluster: RunningCluster) -> None:
    """The same number of open requests, on the page and in /metrics, while there are some; and rates of the last seconds."""
    loads = [asyncio.create_task(load(cluster, str(number))) for number in range(CLIENTS)]
    try:
        async with asyncio.timeout(60):
            while True:
                shown = await figure(page, "in-flight")
                now = await router_samples(cluster)
                gauges = ("serval_num_requests_running", "serval_num_requests_waiting")
                if 0 < shown == sum(now.sum(gauge) for gauge in gauges):
                    break
                await asyncio.sleep(0.02)
        # After some seconds of history a window is a window, and every line has points.
        await page.until("document.getElementById('span').textContent.startsWith('last ')", 30)
        for name in ("answered-rate", "token-rate", "ttft-p50", "itl-p99", "tps-p50", "transfer-rate", "cost-computing"):
            assert await figure(page, name) > 0, name
        assert (await page.run("document.querySelector('#spark-answered .line').getAttribute('d')")).count("L") >= 2
    finally:
        for each in loads:
            each.cancel()
        await asyncio.gather(*loads, return_exceptions=True)


async def when_idle_every_figure_is_that_of_metrics(page: Page, cluster: RunningCluster) -> None:
    await cluster.assert_idle()
    found = await cluster.scrape()
    router = found["router"]
    ended = router.by_label("serval_requests_total", "outcome")
    await page.run(SINCE_START)
    await page.until(f"Number(document.getElementById('transfer-count').value) === {expected(router)['transfer-count']:g}")
    await page.until("document.getElementById('in-flight').value === '0'")
    shown = {name: await figure(page, name) for name in expected(router)}
    assert shown == pytest.approx(expected(router), rel=1e-9)

    rows = await table(page, "outcomes")
    assert {row["key"]: float(row["values"][0]) for row in rows if not row["key"].startswith("refused")} == ended
    tenants = {row["key"]: [float(value) for value in row["values"]] for row in await table(page, "tenants")}
    assert tenants == {"default": pytest.approx([sum(ended.values()), router.sum("serval_generation_tokens_total"),
                                                 router.sum("serval_cost_dollars_total")])}  # fmt: skip
    workers = {row["key"].split()[-1]: row["values"] for row in await table(page, "workers")}
    for name, samples in found.items():
        if name != "router":
            running, waiting, held, _ = map(float, workers[name])
            assert running == samples.sum("serval_num_requests_running")
            assert waiting == samples.sum("serval_num_requests_waiting")
            assert held == samples.sum("serval_kv_cache_usage_perc")
    # One token per microsecond is promised: no answer kept that, and the page says so.
    assert await figure(page, "goodput-share") == 0
    assert "0.001 ms between tokens" in await text(page, "objectives")


async def it_fits_a_phone(page: Page, folder: Path) -> None:
    await page.looks(*PHONE, is_phone=True)
    assert await page.run("document.documentElement.scrollWidth") == PHONE[0]
    assert await page.run("document.documentElement.clientWidth") == PHONE[0]
    await page.screenshot(folder / "dashboard-phone.png")
    # Tab reaches the choice of the window, arrows change it: no mouse is needed.
    assert await page.run("[...document.querySelectorAll('input[name=window]')].every(choice => choice.tabIndex === 0)")
    nameless = "[...document.querySelectorAll('[role=meter]')].filter(bar => !bar.getAttribute('aria-label')).length"
    assert await page.run(nameless) == 0


async def a_router_that_stands_still_makes_it_stale(page: Page, cluster: RunningCluster) -> None:
    pid = cluster.router_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        await page.until("document.body.classList.contains('is-stale') && !document.getElementById('banner').hidden")
        assert "These figures are from" in await text(page, "banner")
        assert await text(page, "readiness") == "stale"
        assert (await page.run("document.title")).startswith("stale")
        await page.until("getComputedStyle(document.querySelector('main')).opacity < 0.5")
    finally:
        os.kill(pid, signal.SIGCONT)
    await page.until("!document.body.classList.contains('is-stale') && document.getElementById('banner').hidden")
    await page.until("document.getElementById('readiness').textContent === 'ready'")


def expected(router: Samples) -> dict[str, float]:
    """What the page must show since the router's start, out of /metrics, by the elements' names."""
    whole = router.sum("serval_request_transfer_time_seconds_sum")
    exposed = router.sum("serval_request_transfer_exposed_seconds_sum")
    moved = router.sum("serval_request_transfer_bytes_total")
    prices = router.by_label("serval_worker_hour_cost_dollars", "pool")
    workers = router.by_label("serval_workers", "pool")
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    latency = {
        f"{short}-{name}": quantile(router, f"serval_{metric}", 1 - share if short == "tps" else share)
        for short, metric in (
            ("ttft", "time_to_first_token_seconds"),
            ("itl", "inter_token_latency_seconds"),
            ("tps", "user_tokens_per_second"),
        )
        for name, share in quantiles.items()
    }
    return latency | {
        "requests-running": router.sum("serval_num_requests_running"),
        "requests-waiting": router.sum("serval_num_requests_waiting"),
        "transfer-count": router.sum("serval_request_transfer_time_seconds_count"),
        "transfer-bytes": moved,
        "transfer-speed": moved / whole,
        "transfer-exposed": min(exposed / whole, 1.0),
        "transfer-hidden": max(1 - exposed / whole, 0.0),
        "cost-hour": sum(workers[pool] * prices[pool] for pool in workers),
    }


def quantile(samples: Samples, name: str, share: float) -> float:
    """Prometheus' histogram_quantile."""
    ends = sorted((float(end), count) for end, count in samples.by_label(f"{name}_bucket", "le").items())
    rank = share * ends[-1][1]
    lower, below = 0.0, 0.0
    for upper, up_to in ends[:-1]:
        if up_to >= rank and up_to > below:
            return lower + (upper - lower) * (rank - below) / (up_to - below)
        lower, below = upper, up_to
    return lower


async def load(cluster: RunningCluster, name: str) -> None:
    async with client() as http:
        for number in itertools.count():
            prompt = f"{name} {number} hello " * 20
            body = {"model": cluster.model, "prompt": prompt, "max_tokens": 64, "ignore_eos": True}
            (await http.post(f"{cluster.url}/v1/completions", json=body)).raise_for_status()


async def router_samples(cluster: RunningCluster) -> Samples:
    async with client() as http:
        return Samples.parse((await http.get(f"{cluster.url}/metrics")).raise_for_status().text)


async def figure(page: Page, name: str) -> float:
    """The value of <data id=name>; -1 where nothing is known."""
    value = await page.run(f"document.getElementById('{name}').value")
    with contextlib.suppress(ValueError):
        return float(value)
    return -1.0


async def text(page: Page, name: str) -> str:
    shown: str = await page.run(f"document.getElementById('{name}').textContent")
    return shown


async def table(page: Page, name: str) -> list[dict[str, Any]]:
    script = f"""[...document.querySelectorAll('#{name} tbody tr')].map(
        row => ({{key: row.dataset.key, values: [...row.querySelectorAll('data')].map(each => each.value)}}))"""
    rows: list[dict[str, Any]] = await page.run(script)
    return rows
