"""What metrics say now, for status pages: asked by the metric itself, so none can be asked for that does not exist."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample


class Readable(Protocol):
    """One metric of `Metrics`."""

    def collect(self) -> Iterable[Metric]: ...


@dataclass(frozen=True)
class HistogramReading:
    """`buckets`: (inclusive upper end, observations up to it), rising; what lies above the last end is in `count` alone."""

    buckets: tuple[tuple[float, int], ...]
    count: int
    sum: float


def total(metric: Readable, **labels: str) -> float:
    """Of a counter or gauge, the sum over all children that carry these labels."""
    return sum(sample.value for sample in _values(metric) if labels.items() <= sample.labels.items())


def totals(metric: Readable, label: str) -> dict[str, float]:
    """Of a counter or gauge, the sums by the values of one label."""
    sums: dict[str, float] = defaultdict(float)
    for sample in _values(metric):
        sums[sample.labels[label]] += sample.value
    return dict(sums)


def histogram(metric: Readable) -> HistogramReading:
    """All children together. No bucket at all where nothing has a child yet."""
    buckets: dict[float, int] = defaultdict(int)
    seconds = 0.0
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets[float(sample.labels["le"])] += round(sample.value)
            elif sample.name.endswith("_sum"):
                seconds += sample.value
    count = buckets.pop(float("inf"), 0)
    return HistogramReading(tuple(sorted(buckets.items())), count, seconds)


def _values(metric: Readable) -> Iterable[Sample]:
    for family in metric.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield sample
