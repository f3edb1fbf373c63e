"""The page's document says what the metrics and the workers say."""

import pytest

from protocol import cluster_pb2
from router.dashboard.state import RouterState, State
from router.dashboard.view import TENANTS_SHOWN, Patience, state_of
from router.objectives import Objectives
from router.workers import DECODE, PREFILL, Worker
from telemetry.metrics import Metrics

ROUTER = RouterState(name="router-0", model="tiny", serval_version="1", why_not_ready=None, slo_ttft_s=1.0, slo_itl_s=None)
NOW = 100.0
PATIENCE = Patience(silence_s=1.5, stall_s=30.0)


def state(metrics: Metrics, *workers: Worker) -> State:
    return state_of(metrics, workers, ROUTER, PATIENCE, NOW, at=2000.0, started_at=1000)


def worker(name: str, role: cluster_pb2.Role.ValueType = DECODE, heard_at: float = NOW, progressed_at: float = NOW) -> Worker:
    hello = cluster_pb2.Hello(role=role, peer=cluster_pb2.Peer(name=name, incarnation=1), kv_blocks=50)
    return Worker(hello, joined_at=0, heard_at=heard_at, progressed_at=progressed_at)


async def test_a_router_without_requests_and_workers() -> None:
    read = state(Metrics("router", "router-0"))
    assert (read.version, read.at, read.started_at) == (1, 2000.0, 1000)
    assert read.workers == ()
    assert read.requests.outcomes == {}
    assert read.latency.time_to_first_token_s.count == 0
    assert [pool.pool for pool in read.cost.pools] == ["prefill", "decode"]
    assert State.model_validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize(
    ("heard_ago_s", "progressed_ago_s", "is_draining", "running", "health"),
    [
        (0.1, 0.1, False, 1, "live"),
        (0.1, 0.1, True, 1, "draining"),
        (2.0, 0.1, True, 1, "silent"),
        (0.1, 40.0, False, 1, "stalled"),
        (0.1, 40.0, False, 0, "live"),
    ],
)
async def test_a_workers_health(
    heard_ago_s: float, progressed_ago_s: float, is_draining: bool, running: int, health: str
) -> None:
    one = worker("decode-0", heard_at=NOW - heard_ago_s, progressed_at=NOW - progressed_ago_s)
    one.is_draining = is_draining
    one.load = cluster_pb2.LoadReport(running=running)
    (read,) = state(Metrics("router", "router-0"), one).workers
    assert read.health == health
    assert read.silent_s == pytest.approx(heard_ago_s)


async def test_a_workers_load_is_its_own_word() -> None:
    one = worker("prefill-0", PREFILL)
    one.in_flight = 2
    (before,) = state(Metrics("router", "router-0"), one).workers
    assert (before.kv_blocks_used, before.kv_blocks_total) == (0, 50)
    one.load = cluster_pb2.LoadReport(running=3, waiting=4, kv_blocks_used=7, kv_blocks_total=40, prefill_tokens_per_s=9.5)
    (read,) = state(Metrics("router", "router-0"), one).workers
    assert (read.pool, read.running, read.waiting, read.in_flight) == ("prefill", 3, 4, 2)
    assert (read.kv_blocks_used, read.kv_blocks_total, read.prefill_tokens_per_s) == (7, 40, 9.5)


async def test_figures_are_the_metrics() -> None:
    metrics = Metrics("router", "router-0")
    metrics.requests.of(outcome="stop", tenant="a").inc(2)
    metrics.rejections.of(reason="overloaded", tenant="a").inc(3)
    metrics.requests_within_objectives.of().inc()
    metrics.requests_running.of().set(4)
    metrics.request_transfer_bytes.of().inc(1000)
    metrics.transfer_time.of().observe(0.5)
    metrics.transfer_exposed_time.of().observe(0.25)
    metrics.pool_cost.read_from(lambda: {("decode",): 1.5})
    metrics.cost.of(pool="decode", tenant="a", reason="served").inc(0.5)
    metrics.cost.of(pool="decode", tenant="a", reason="failed").inc(0.25)
    read = state(metrics)
    assert read.requests.outcomes == {"stop": 2}
    assert read.requests.refusals == {"overloaded": 3}
    assert (read.requests.running, read.requests.within_objectives) == (4, 1)
    assert read.transfers.model_dump() == {"count": 1, "bytes": 1000, "seconds": 0.5, "exposed_seconds": 0.25}
    decode = read.cost.pools[1]
    assert (decode.pool, decode.paid_usd, decode.computing_usd) == ("decode", 1.5, 0.75)
    assert read.cost.by_reason == {"served": 0.5, "failed": 0.25}


async def test_many_tenants_are_those_with_the_most_dollars() -> None:
    metrics = Metrics("router", "router-0")
    for number in range(TENANTS_SHOWN + 5):
        metrics.cost.of(pool="decode", tenant=f"t{number}", reason="served").inc(number + 1)
    read = state(metrics).cost
    assert [each.tenant for each in read.tenants[:2]] == [f"t{TENANTS_SHOWN + 4}", f"t{TENANTS_SHOWN + 3}"]
    assert (len(read.tenants), read.tenants_left_out) == (TENANTS_SHOWN, 5)


@pytest.mark.parametrize(
    ("objectives", "ttft_s", "itl_s", "are_kept"),
    [
        (Objectives(), 100.0, 100.0, True),
        (Objectives(ttft_s=1.0), 1.0, 100.0, True),
        (Objectives(ttft_s=1.0), 1.1, None, False),
        (Objectives(itl_s=0.1), 100.0, 0.2, False),
        (Objectives(itl_s=0.1), 100.0, None, True),
        (Objectives(ttft_s=1.0, itl_s=0.1), 0.5, 0.05, True),
    ],
)
def test_what_keeps_the_objectives(objectives: Objectives, ttft_s: float, itl_s: float | None, are_kept: bool) -> None:
    assert objectives.are_kept(ttft_s, itl_s) is are_kept
