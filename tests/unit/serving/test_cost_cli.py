"""`serval cost`, from a router's and its workers' /metrics and from Prometheus, over HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from router.accounting import Accounting
from router.worker_time import WorkerTime
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
def sites() -> Iterator[tuple[Site, Site]]:
    """A router that knows one decode worker, and that worker."""
    router, worker = Site(), Site()
    now, metrics = [0.0], Metrics("router", "router-0")
    times = WorkerTime(lambda: now[0])
    Accounting(metrics, PRICES).bill_pools(times)
    times.count("decode", 1)
    now[0] = 100.0
    metrics.workers.of(pool="decode").set(1)
    metrics.cost.of(pool="decode", tenant="acme", reason="served").inc(0.08)
    metrics.generation_tokens.of(tenant="acme").inc(1000)
    computed = Metrics("decode", "decode-0")
    computed.engine_busy.of().inc(41.0)
    router.pages = {
        "/metrics": metrics.render(),
        "/workers": json.dumps([{"metrics_address": worker.address}, {"metrics_address": ""}]).encode(),
    }
    worker.pages = {"/metrics": computed.render()}
    try:
        yield router, worker
    finally:
        router.close()
        worker.close()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["serval", "cost", *arguments])
    return cli.main()


def test_the_bill_of_a_router_and_its_workers(
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


def test_the_bill_for_people(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sites[1].pages.clear()  # a worker that does not answer
    assert run(monkeypatch, "--url", f"http://{sites[0].address}") == 0
    shown = capsys.readouterr().out
    assert "$0.2 since the router started, $0.12 of it idle" in shown
    assert "input none yet, output $200.00" in shown
    assert "by tenant: acme $0.08" in shown and "by what became of it: served $0.08" in shown


def test_the_bill_from_prometheus(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = sites[0]

    def say(query: str, value: str, **labels: str) -> None:
        result = [{"metric": labels, "value": [1.0, value]}]
        site.pages[query] = json.dumps({"status": "success", "data": {"result": result}}).encode()

    empty = json.dumps({"status": "success", "data": {"result": []}}).encode()
    for name in ("engine_busy_seconds_total", "prompt_tokens_total", "generation_tokens_total"):
        site.pages[f"increase(serval_{name}[1h])"] = empty
    site.pages["serval_worker_hour_cost_dollars"] = empty
    say("increase(serval_pool_cost_dollars_total[1h])", "5", pool="decode")
    say("increase(serval_cost_dollars_total[1h])", "2", pool="decode", tenant="acme", reason="served")
    say("serval_workers", "3", pool="decode")
    assert run(monkeypatch, "--prometheus", f"http://{site.address}", "--window", "1h") == 0
    assert "$5.00 in the last 1h, $3.00 of it idle" in capsys.readouterr().out
    site.pages["increase(serval_pool_cost_dollars_total[x])"] = b'{"status": "error", "error": "bad duration"}'
    assert run(monkeypatch, "--prometheus", f"http://{site.address}", "--window", "x") == cli.EXIT_USAGE
    assert "window: Prometheus refuses" in capsys.readouterr().err


def test_nobody_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--url", "http://127.0.0.1:9") == cli.EXIT_FAILED
    told = capsys.readouterr().err
    assert told.startswith("serval: error: url: http://127.0.0.1:9/metrics does not answer") and told.count("\n") == 1
