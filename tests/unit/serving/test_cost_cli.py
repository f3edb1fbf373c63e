"""`serval cost`, from routers' /metrics and from Prometheus, over HTTP."""

import json
import threading
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from protocol import cluster_pb2
from router.accounting import Accounting
from router.worker_time import WorkerTime
from router.workers import Worker
from serving import cli
from telemetry.cost import CostConfig, WorkerPrice
from telemetry.metrics import Metrics

PRICES = CostConfig(prefill=WorkerPrice(gpu_hour_usd=3.6), decode=WorkerPrice(gpu_hour_usd=3.6, gpus=2))


class Site:
    """Answers of a small web site, by path or, for Prometheus, by query."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = parse_qs(parts.query).get("query")
                page = site.pages.get(query[0] if query else parts.path)
                self.send_response(200 if page is not None else 404)
                self.end_headers()
                self.wfile.write(page or b"{}")

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
async def sites() -> AsyncIterator[tuple[Site, Site]]:
    """Two routers that know the same decode worker; the first has had its requests. The second came later."""
    pages = [rendered(100.0, 41.0, {"served": 0.08}), rendered(50.0, 20.0, {"failed": 0.002})]
    routers = Site(), Site()
    for site, page in zip(routers, pages, strict=True):
        site.pages = {"/metrics": page}
    try:
        yield routers
    finally:
        for site in routers:
            site.close()


def rendered(there_s: float, busy_s: float, spent: dict[str, float]) -> bytes:
    now, metrics = [0.0], Metrics("router", "router-0")
    times, accounting = WorkerTime(lambda: now[0]), Accounting(metrics, PRICES)
    accounting.bill_pools(times)
    times.count("decode", 1)
    now[0] = there_s
    peer = cluster_pb2.Peer(name="decode-0", incarnation=1)
    worker = Worker(cluster_pb2.Hello(role=cluster_pb2.ROLE_DECODE, peer=peer), 0.0, 0.0, 0.0)
    for report_s in (0.0, busy_s):
        accounting.computed.on_report(worker, cluster_pb2.LoadReport(busy_s=report_s))
    metrics.workers.of(pool="decode").set(1)
    for reason, usd in spent.items():
        metrics.cost.of(pool="decode", tenant="acme", reason=reason).inc(usd)
    metrics.generation_tokens.of(tenant="acme").inc(1000)
    return metrics.render()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["serval", "cost", *arguments])
    return cli.main()


async def test_the_bill_of_a_router(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--url", f"http://{sites[0].address}/", "--json") == 0
    bill = json.loads(capsys.readouterr().out)
    decode = bill["pools"]["decode"]
    assert decode["usd_per_hour"] == pytest.approx(7.2)
    assert decode["usd"] == pytest.approx(0.2), "100 s of two GPUs"
    assert decode["idle_usd"] == pytest.approx(0.2 - 0.082)
    assert bill["unbalanced"] == pytest.approx(0.002 / 0.082)
    assert bill["usd_per_million_output"] == pytest.approx(200.0)


async def test_the_bill_of_two_routers(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = [word for site in sites for word in ("--url", f"http://{site.address}")]
    assert run(monkeypatch, *addresses, "--json") == 0
    bill = json.loads(capsys.readouterr().out)
    decode = bill["pools"]["decode"]
    assert (decode["workers"], decode["usd"], decode["usd_per_hour"]) == pytest.approx((1, 0.2, 7.2)), "counted once"
    assert bill["usd_by_reason"] == pytest.approx({"served": 0.08, "failed": 0.002})
    assert bill["unbalanced"] == pytest.approx(0.0)


async def test_the_bill_for_people(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--url", f"http://{sites[0].address}") == 0
    shown = capsys.readouterr().out
    assert "$0.2 since the router started, $0.118 of it idle" in shown
    assert "input none yet, output $200.00" in shown
    assert "by tenant: acme $0.08" in shown and "by what became of it: served $0.08" in shown


async def test_the_bill_from_prometheus(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = sites[0]

    def say(query: str, value: str, **labels: str) -> None:
        result = [{"metric": labels, "value": [1.0, value]}]
        site.pages[query] = json.dumps({"status": "success", "data": {"result": result}}).encode()

    empty = json.dumps({"status": "success", "data": {"result": []}}).encode()
    for name in ("prompt_tokens_total", "generation_tokens_total"):
        site.pages[f"increase(serval_{name}[1h])"] = empty

    def of_pools(name: str, window: str) -> str:
        return f"60 * sum_over_time(max by (pool) (rate(serval_{name}_total[2m]))[{window}:1m])"

    site.pages[of_pools("pool_busy_seconds", "1h")] = empty
    site.pages["serval_worker_hour_cost_dollars"] = empty
    say(of_pools("pool_cost_dollars", "1h"), "5", pool="decode")
    say("increase(serval_cost_dollars_total[1h])", "2", pool="decode", tenant="acme", reason="served")
    say("serval_workers", "3", pool="decode")
    assert run(monkeypatch, "--prometheus", f"http://{site.address}", "--window", "1h") == 0
    assert "$5.00 in the last 1h, $3.00 of it idle" in capsys.readouterr().out
    site.pages["increase(serval_cost_dollars_total[0s])"] = b'{"status": "error", "error": "bad duration"}'
    assert run(monkeypatch, "--prometheus", f"http://{site.address}", "--window", "0s") == cli.EXIT_USAGE
    assert "window: Prometheus refuses" in capsys.readouterr().err


def test_nobody_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--url", "http://127.0.0.1:9") == cli.EXIT_FAILED
    told = capsys.readouterr().err
    assert told.startswith("serval: error: url: http://127.0.0.1:9/metrics does not answer") and told.count("\n") == 1


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("serval: error: ") and shown.err.count("\n") == 1
    return shown.err


def cut_in_a_label(page: bytes) -> bytes:
    return page[: page.rindex(b'"} ')]


def cut_in_a_figure(page: bytes) -> bytes:
    return page[:-1]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (b"<html>hello</html>", "/metrics holds no metrics"),
        (b"# TYPE up gauge\nup 1\n", "/metrics is not a router's: it says nothing of serval_worker_hour_cost_dollars"),
        (b"", "/metrics holds no metrics"),
        (cut_in_a_label, "or half a page of them"),
        (cut_in_a_figure, "its last line has no end"),
        (None, "/metrics answers HTTP 404: is it a router's HTTP address?"),
    ],
)
async def test_what_is_no_router_has_no_bill(
    sites: tuple[Site, Site],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: bytes | Callable[[bytes], bytes] | None,
    says: str,
) -> None:
    if callable(page):
        page = page(rendered(100.0, 41.0, {"served": 0.08}))
    sites[0].pages = {} if page is None else {"/metrics": page}
    assert run(monkeypatch, "--url", f"http://{sites[0].address}") == cli.EXIT_FAILED
    assert says in one_line(capsys)


@pytest.mark.parametrize("page", [b"null", b"[1]", b"<html>", b'{"status": "success"}', b"{}"])
async def test_what_is_no_prometheus(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: bytes
) -> None:
    sites[0].pages = {"increase(serval_cost_dollars_total[24h])": page}
    assert run(monkeypatch, "--prometheus", f"http://{sites[0].address}") == cli.EXIT_FAILED
    assert "is not Prometheus (HTTP 200)" in one_line(capsys)


async def test_a_prometheus_that_does_not_scrape_us(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sites[0].pages = _Always(json.dumps({"status": "success", "data": {"result": []}}).encode())
    assert run(monkeypatch, "--prometheus", f"http://{sites[0].address}") == cli.EXIT_FAILED
    assert "knows nothing of Serval in the last 24h: does it scrape the routers?" in one_line(capsys)


class _Always(dict[str, bytes]):
    """One answer to everything."""

    def __init__(self, page: bytes) -> None:
        self._page = page

    def get(self, _key: str, _default: object = None) -> bytes:  # type: ignore[override]
        return self._page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--window", "1h"), "window: needs --prometheus"),
        (("--prometheus", "http://127.0.0.1:9", "--url", "http://127.0.0.1:9"), "url: Prometheus is read instead"),
        (("--prometheus", "http://127.0.0.1:9", "--window", "1h] or vector(1"), "window: must be a time such as 24h"),
        (("--prometheus", "http://127.0.0.1:9", "--window", "-1h"), "window: must be a time such as 24h"),
    ],
)
def test_options_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert run(monkeypatch, *arguments) == cli.EXIT_USAGE
    assert says in one_line(capsys)


async def test_a_router_that_is_named_twice_counts_once(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://{sites[0].address}"
    assert run(monkeypatch, "--url", address, "--url", f"{address}/", "--json") == 0
    assert json.loads(capsys.readouterr().out)["usd_by_reason"] == pytest.approx({"served": 0.08})
