"""From the router's metrics and its view of the workers to the page's document. Reads, and changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from router.dashboard.state import (
    Cost,
    Histogram,
    Latency,
    PoolCost,
    Requests,
    RouterState,
    State,
    TenantCost,
    Tokens,
    Transfers,
    WorkerState,
)
from router.workers import POOL_NAMES, Worker
from telemetry.metrics import Metrics
from telemetry.reading import Readable, Values, histogram

TENANTS_SHOWN = 20


@dataclass(frozen=True)
class Patience:
    """Seconds after which a worker no longer looks well: without a word, and with work but without a step."""

    silence_s: float
    stall_s: float


def state_of(
    metrics: Metrics, workers: Sequence[Worker], router: RouterState, patience: Patience, now: float, at: float, started_at: int
) -> State:
    """`now` is the workers' clock (the event loop's), `at` and `started_at` Unix time."""
    requests, generated = Values(metrics.requests), Values(metrics.generation_tokens)
    return State(
        at=at,
        started_at=started_at,
        router=router,
        workers=tuple(_worker(worker, patience, now) for worker in workers),
        workers_lost=_counts(Values(metrics.worker_losses), "pool"),
        requests=_requests(metrics, requests),
        latency=_latency(metrics),
        tokens=Tokens(prompt=round(Values(metrics.prompt_tokens).total), generated=round(generated.total)),
        transfers=_transfers(metrics),
        cost=_cost(metrics, requests, generated),
    )


def _worker(worker: Worker, patience: Patience, now: float) -> WorkerState:
    load = worker.load
    return WorkerState(
        name=worker.name,
        pool=worker.pool,
        health=_health(worker, patience, now),
        silent_s=round(now - worker.heard_at, 3),
        running=load.running,
        waiting=load.waiting,
        in_flight=worker.in_flight,
        kv_blocks_used=load.kv_blocks_used,
        kv_blocks_total=load.kv_blocks_total or worker.hello.kv_blocks,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        step_s=load.step_s,
    )


def _health(worker: Worker, patience: Patience, now: float) -> Literal["live", "draining", "silent", "stalled"]:
    if now - worker.heard_at > patience.silence_s:
        return "silent"
    if worker.load.running and now - worker.progressed_at > patience.stall_s:
        return "stalled"
    return "draining" if worker.is_draining else "live"


def _requests(metrics: Metrics, ended: Values) -> Requests:
    return Requests(
        running=round(Values(metrics.requests_running).total),
        waiting=round(Values(metrics.requests_waiting).total),
        outcomes=_counts(ended, "outcome"),
        refusals=_counts(Values(metrics.rejections), "reason"),
        within_objectives=round(Values(metrics.requests_within_objectives).total),
    )


def _latency(metrics: Metrics) -> Latency:
    return Latency(
        time_to_first_token_s=_histogram(metrics.time_to_first_token),
        inter_token_latency_s=_histogram(metrics.inter_token_latency),
        user_tokens_per_second=_histogram(metrics.user_tokens_per_second),
    )


def _transfers(metrics: Metrics) -> Transfers:
    whole, exposed = histogram(metrics.transfer_time), histogram(metrics.transfer_exposed_time)
    return Transfers(
        count=whole.count,
        bytes=round(Values(metrics.request_transfer_bytes).total),
        seconds=whole.sum,
        exposed_seconds=exposed.sum,
    )


def _cost(metrics: Metrics, requests: Values, generated: Values) -> Cost:
    spent = Values(metrics.cost)
    workers, prices = Values(metrics.workers).by("pool"), Values(metrics.worker_hour_cost).by("pool")
    paid, computing = Values(metrics.pool_cost).by("pool"), spent.by("pool")
    tenants = _tenants(spent.by("tenant"), requests.by("tenant"), generated.by("tenant"))
    return Cost(
        pools=tuple(
            PoolCost(
                pool=pool,
                workers=round(workers.get(pool, 0)),
                worker_hour_usd=prices.get(pool, 0.0),
                paid_usd=paid.get(pool, 0.0),
                computing_usd=computing.get(pool, 0.0),
            )
            for pool in sorted(POOL_NAMES.values(), reverse=True)
        ),
        by_reason=spent.by("reason"),
        tenants=tuple(tenants[:TENANTS_SHOWN]),
        tenants_left_out=max(0, len(tenants) - TENANTS_SHOWN),
    )


def _tenants(usd: dict[str, float], requests: dict[str, float], generated: dict[str, float]) -> list[TenantCost]:
    """Those with the most dollars first."""
    by_cost = sorted(usd.keys() | requests.keys() | generated.keys(), key=lambda tenant: (-usd.get(tenant, 0.0), tenant))
    return [
        TenantCost(
            tenant=tenant,
            requests=round(requests.get(tenant, 0)),
            generated_tokens=round(generated.get(tenant, 0)),
            usd=usd.get(tenant, 0.0),
        )
        for tenant in by_cost
    ]


def _counts(values: Values, label: str) -> dict[str, int]:
    return {name: round(count) for name, count in values.by(label).items()}


def _histogram(metric: Readable) -> Histogram:
    read = histogram(metric)
    return Histogram(buckets=read.buckets, count=read.count, sum=read.sum)
