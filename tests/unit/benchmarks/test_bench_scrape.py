"""The cluster's counters: parsed from what the processes really serve, subtracted, summed."""

import httpx
import pytest
from benchmarks_support import ScriptedServer, serving, whole_answer

from benchmarks.scrape import Scraper, TransferGrowth, by_label, increase, parse, total
from telemetry.metrics import Metrics


def scraped(*processes: Metrics) -> dict:
    samples: dict = {}
    for metrics in processes:
        samples |= parse(metrics.render().decode())
    return samples


def test_growth_is_per_role_and_over_all_workers() -> None:
    prefill, first, second = Metrics("prefill", "prefill-0"), Metrics("decode", "decode-0"), Metrics("decode", "decode-1")
    first.kv_transfer_exposed.of().observe(7.0)
    before = scraped(prefill, first, second)
    prefill.kv_transfer_bytes.of().inc(300)
    prefill.kv_transfer_exposed.of().observe(0.9)
    for number, worker in enumerate((first, second), start=1):
        worker.kv_transfer_bytes.of().inc(100 * number)
        worker.kv_transfer_exposed.of().observe(0.1 * number)
        worker.local_prefills.of(reason="short").inc()
    growth = TransferGrowth.of(increase(before, scraped(prefill, first, second)), workers=3)
    assert (growth.written_bytes, growth.landed_bytes) == (300, 300)
    assert growth.exposed.count == 2
    assert growth.exposed.total_s == pytest.approx(0.3)
    assert growth.exposed.mean_s == pytest.approx(0.15)
    assert growth.exposed.p99_s is not None and 0.1 < growth.exposed.p99_s <= 0.25
    assert growth.exposed_at_prefill.total_s == pytest.approx(0.9)
    assert growth.transfer.count == 0 and growth.transfer.mean_s is None
    assert growth.local_prefills == {"short": 2}


def test_a_process_that_started_anew_counts_from_nothing() -> None:
    before, after = Metrics("decode", "decode-0"), Metrics("decode", "decode-0")
    before.kv_transfer_bytes.of().inc(1000)
    after.kv_transfer_bytes.of().inc(10)
    assert total(increase(scraped(before), scraped(after)), "serval_kv_transfer_bytes_total") == 10


def test_a_process_that_came_later_counts_in_full() -> None:
    late = Metrics("decode", "decode-1")
    late.kv_transfer_bytes.of().inc(5)
    assert total(increase({}, scraped(late)), "serval_kv_transfer_bytes_total", worker="decode-1") == 5


def test_by_label_leaves_out_zeros() -> None:
    router = Metrics("router", "router")
    router.requests.of(outcome="stop", tenant="a").inc(2)
    router.requests.of(outcome="cancelled", tenant="a")
    assert by_label(scraped(router), "serval_requests_total", "outcome") == {"stop": 2}


async def test_workers_are_found_through_the_router() -> None:
    decode, router = Metrics("decode", "decode-0"), Metrics("router", "router")
    decode.kv_digest_mismatches.of().inc(2)
    router.requests.of(outcome="length", tenant="a").inc(3)
    worker = ScriptedServer(lambda _: whole_answer(1), {"/metrics": decode.render().decode()})
    front = ScriptedServer(lambda _: whole_answer(1), {"/metrics": router.render().decode()})
    async with serving(worker), serving(front), httpx.AsyncClient(base_url=front.url) as http:
        targets = [("router", front.url), ("decode", worker.url), ("prefill", "http://127.0.0.1:1")]
        groups = [f'{{"targets": ["{url[7:]}"], "labels": {{"role": "{role}"}}}}' for role, url in targets]
        front.pages["/sd/prometheus"] = f"[{','.join(groups)}]"
        scraper = await Scraper.discover(http)
        reading = await scraper.read()
    assert scraper.workers == (worker.url[7:], "127.0.0.1:1")
    assert reading.workers == 1  # the other does not answer
    assert total(reading.samples, "serval_kv_digest_mismatches_total") == 2
    assert total(reading.samples, "serval_requests_total", outcome="length") == 3


async def test_a_router_that_knows_no_discovery_has_no_workers() -> None:
    async with serving(ScriptedServer(lambda _: [])) as front, httpx.AsyncClient(base_url=front.url) as http:
        assert (await Scraper.discover(http)).workers == ()
