"""The cluster's own counters before and after a run: what only the cluster can know (bytes moved, time not hidden).

`Samples` and the arithmetic on them are pure; `Scraper` does the reading.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict

from benchmarks.quantiles import histogram_percentile

Labels = frozenset[tuple[str, str]]
Samples = Mapping[tuple[str, Labels], float]
"""Sample name and labels → value."""

GROWING = ("_total", "_sum", "_count", "_bucket")


def parse(text: str) -> dict[tuple[str, Labels], float]:
    """The counters and histograms of one Prometheus text exposition. Raises ValueError when it is none."""
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.endswith(GROWING)
    }


def increase(before: Samples, after: Samples) -> dict[tuple[str, Labels], float]:
    """By how much each sample grew. One that fell belongs to a process that started anew meanwhile: what it has counted since
    is the growth, as in Prometheus' increase()."""
    return {key: value - before.get(key, 0.0) if value >= before.get(key, 0.0) else value for key, value in after.items()}


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over every sample of that name that carries these labels."""
    wanted = labels.items()
    return sum(value for (sample, has), value in samples.items() if sample == name and wanted <= has)


def by_label(samples: Samples, name: str, label: str) -> dict[str, float]:
    """`total` per value of one label; those that are zero are left out."""
    sums: dict[str, float] = defaultdict(float)
    for (sample, has), value in samples.items():
        if sample == name and value:
            sums[dict(has).get(label, "")] += value
    return dict(sums)


class HistogramGrowth(BaseModel):
    """What a histogram of seconds counted during a run. The percentiles are estimates from its buckets."""

    model_config = ConfigDict(frozen=True)

    count: int
    total_s: float
    mean_s: float | None
    p50_s: float | None
    p99_s: float | None

    @classmethod
    def of(cls, samples: Samples, name: str, **labels: str) -> "HistogramGrowth":
        """Over every worker that carries `labels`."""
        count, total_s = total(samples, f"{name}_count", **labels), total(samples, f"{name}_sum", **labels)
        buckets: dict[float, float] = defaultdict(float)
        for (sample, has), value in samples.items():
            if sample == f"{name}_bucket" and labels.items() <= has:
                buckets[float(dict(has)["le"])] += value
        return cls(
            count=round(count),
            total_s=total_s,
            mean_s=total_s / count if count else None,
            p50_s=histogram_percentile(buckets, 50),
            p99_s=histogram_percentile(buckets, 99),
        )


class TransferGrowth(BaseModel):
    """What KV transfer did during a run, summed over the workers that were scraped."""

    model_config = ConfigDict(frozen=True)

    workers: int
    """Workers scraped before and after; 0 means that nothing here is known."""
    written_bytes: float
    """By prefill workers."""
    landed_bytes: float
    """At decode workers, verified."""
    transfer: HistogramGrowth
    """First to last layer landed."""
    exposed: HistogramGrowth
    """First token known at the decode worker to all layers landed and verified: what overlap did not hide."""
    exposed_at_prefill: HistogramGrowth
    """The same on the prefill worker's clock: end of compute to the last write's completion."""
    failures: dict[str, float]
    digest_mismatches: float
    local_prefills: dict[str, float]
    """Prompts that decode workers computed by themselves, by reason: no transfer belongs to them."""
    outcomes: dict[str, float]
    """Requests ended, as the router counted them."""

    @classmethod
    def of(cls, samples: Samples, workers: int) -> "TransferGrowth":
        return cls(
            workers=workers,
            written_bytes=total(samples, "serval_kv_transfer_bytes_total", role="prefill"),
            landed_bytes=total(samples, "serval_kv_transfer_bytes_total", role="decode"),
            transfer=HistogramGrowth.of(samples, "serval_kv_transfer_seconds", role="decode"),
            exposed=HistogramGrowth.of(samples, "serval_kv_transfer_exposed_seconds", role="decode"),
            exposed_at_prefill=HistogramGrowth.of(samples, "serval_kv_transfer_exposed_seconds", role="prefill"),
            failures=by_label(samples, "serval_kv_transfer_failures_total", "reason"),
            digest_mismatches=total(samples, "serval_kv_digest_mismatches_total"),
            local_prefills=by_label(samples, "serval_local_prefills_total", "reason"),
            outcomes=by_label(samples, "serval_requests_total", "outcome"),
        )


class Scraper:
    """Reads /metrics of the router and of the workers it knows. A process that does not answer is left out."""

    def __init__(self, client: httpx.AsyncClient, workers: Iterable[str], timeout_s: float = 5.0) -> None:
        """`client` has the router's base URL; `workers` are host:port of the workers' /metrics."""
        self._client = client
        self._timeout_s = timeout_s
        self.workers = tuple(workers)

    @classmethod
    async def discover(cls, client: httpx.AsyncClient) -> "Scraper":
        """Asks the router for its workers (Prometheus' HTTP service discovery format)."""
        try:
            response = await client.get("/sd/prometheus", timeout=5.0)
            response.raise_for_status()
            found = [(group["labels"]["role"], target) for group in response.json() for target in group["targets"]]
            workers = [target for role, target in found if role != "router"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            workers = []
        return cls(client, workers)

    async def read(self) -> "Reading":
        texts = await asyncio.gather(*(self._get(f"http://{worker}/metrics") for worker in self.workers), self._get("/metrics"))
        samples: dict[tuple[str, Labels], float] = {}
        for text in texts:
            samples |= parse(text)
        return Reading(samples, workers=sum(bool(text) for text in texts[:-1]))

    async def _get(self, url: str) -> str:
        try:
            response = await self._client.get(url, timeout=self._timeout_s)
            response.raise_for_status()
            return response.text
        except httpx.HTTPError:
            return ""


class Reading:
    """All counters at one moment."""

    def __init__(self, samples: Samples, workers: int) -> None:
        self.samples = samples
        self.workers = workers

    def growth_since(self, before: "Reading") -> TransferGrowth:
        return TransferGrowth.of(increase(before.samples, self.samples), min(self.workers, before.workers))
