"""What a cluster has cost, for what, and for whom: from the counters that routers and workers expose."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

POOLS = ("prefill", "decode")


@dataclass(frozen=True)
class Sample:
    """One value of /metrics, or of Prometheus' answer."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class PoolBill:
    """Dollars of one pool since its counters began. `usd` is all of it, `requests_usd` what requests account for."""

    workers: float
    usd_per_hour: float
    """At the workers that are there now."""
    usd: float
    requests_usd: float
    idle_usd: float
    """Time in which no worker's engine computed."""
    unaccounted_usd: float
    """Computed, and no request's yet: of open requests."""


@dataclass(frozen=True)
class Bill:
    """Dollars, all since the counters began. Prices per million tokens are None where there was no token."""

    pools: Mapping[str, PoolBill]
    usd_per_million_input: float | None
    """All of prefill's dollars, idle ones too, over the prompt tokens of finished requests."""
    usd_per_million_output: float | None
    """All of decode's dollars over answer tokens."""
    usd_by_tenant: Mapping[str, float]
    usd_by_reason: Mapping[str, float]
    """Served, failed, retried elsewhere, and lost with a worker that died before it could tell for whom."""
    idle_usd: float
    usd: float
    unbalanced: float | None
    """Of what the engines computed, the share that no request accounts for; None where they computed nothing."""


def make_bill(samples: Iterable[Sample]) -> Bill:
    """Of one router's samples, or of all of several. Each router counts all workers, so of what it says of a pool the largest value
    is taken; and each counts its own requests, so these are added up."""
    found = _Samples(samples)
    pools = {pool: _pool_bill(found, pool) for pool in POOLS}
    computed = sum(pool.requests_usd + pool.unaccounted_usd for pool in pools.values())
    unaccounted = sum(pool.unaccounted_usd for pool in pools.values())
    return Bill(
        pools=pools,
        usd_per_million_input=_per_million(pools["prefill"].usd, found.sum("serval_prompt_tokens_total")),
        usd_per_million_output=_per_million(pools["decode"].usd, found.sum("serval_generation_tokens_total")),
        usd_by_tenant=found.by("serval_cost_dollars_total", "tenant"),
        usd_by_reason=found.by("serval_cost_dollars_total", "reason"),
        idle_usd=sum(pool.idle_usd for pool in pools.values()),
        usd=sum(pool.usd for pool in pools.values()),
        unbalanced=unaccounted / computed if computed else None,
    )


def _pool_bill(found: "_Samples", pool: str) -> PoolBill:
    workers, hour_usd = found.most("serval_workers", pool), found.most("serval_worker_hour_cost_dollars", pool)
    usd, requests_usd = found.most("serval_pool_cost_dollars_total", pool), found.sum("serval_cost_dollars_total", pool=pool)
    # An end may be told before the report that has its last steps: what requests account for was computed.
    busy_usd = max(requests_usd, found.most("serval_pool_busy_seconds_total", pool) / 3600 * hour_usd)
    return PoolBill(
        workers=workers,
        usd_per_hour=workers * hour_usd,
        usd=usd,
        requests_usd=requests_usd,
        idle_usd=usd - busy_usd,
        unaccounted_usd=round(busy_usd - requests_usd, 12),
    )


def _per_million(usd: float, tokens: float) -> float | None:
    return usd / tokens * 1e6 if tokens else None


class _Samples:
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._samples[sample.name].append(sample)

    def sum(self, name: str, **labels: str) -> float:
        """Of those that carry these labels."""
        return sum(one.value for one in self._samples[name] if labels.items() <= one.labels.items())

    def most(self, name: str, pool: str) -> float:
        """Of what each router says of a pool, the largest."""
        return max((one.value for one in self._samples[name] if one.labels.get("pool") == pool), default=0.0)

    def by(self, name: str, label: str) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for one in self._samples[name]:
            sums[one.labels.get(label, "")] += one.value
        return dict(sums)
