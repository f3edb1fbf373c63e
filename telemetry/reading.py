"""What metrics say now, for status pages: asked by the metric itself, so none can be asked for that does not exist."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import Metric


class Readable(Protocol):
    """One metric of `Metrics`."""

    def collect(self) -> Iterable[Metric]: ...


@dataclass(frozen=True)
class HistogramReading:
    """`buckets`: (inclusive upper end, observations up to it), rising; what lies above the last end is in `count` alone."""

    buckets: tuple[tuple[float, int], ...]
    count: int
    sum: float


class Values:
    """The children of a counter or gauge, read once."""

    def __init__(self, metric: Readable) -> None:
        self._samples = [
            (sample.labels, sample.value)
            for family in metric.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        ]

    @property
    def total(self) -> float:
        return sum(value for _, value in self._samples)

    def by(self, label: str) -> dict[str, float]:
        """The sums by the values of one label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self._samples:
            sums[labels[label]] += value
        return dict(sums)


def histogram(metric: Readable) -> HistogramReading:
    """All children together. No bucket at all where nothing has a child yet."""
    buckets: dict[float, int] = defaultdict(int)
    observed = 0.0
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                buckets[float(sample.labels["le"])] += round(sample.value)
            elif sample.name.endswith("_sum"):
                observed += sample.value
    count = buckets.pop(float("inf"), 0)
    return HistogramReading(tuple(sorted(buckets.items())), count, observed)
