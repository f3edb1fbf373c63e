"""A counter and a histogram for what happens with every token: a tenth of the time of prometheus_client's own, which take a lock.

Only one thread may change a metric; any may read it. Read in the middle of a change, a histogram's sum and counts differ by that
one observation, as prometheus_client's do.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Count:
    """One counter, for one set of labels."""

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int) -> None:
        self.value += amount


class Buckets:
    """One histogram, for one set of labels. `bounds` are the inclusive upper ends, rising; one more bucket has no end."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """`value` has been seen so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper end, as Prometheus has them, and the sum."""
        ends = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(ends, map(float, accumulate(self._counts)), strict=True)), self._sum


AnyChild = TypeVar("AnyChild", Count, Buckets)


class _Family(Collector, Generic[AnyChild]):
    """The children of one metric by their labels; `constant` ones belong to all."""

    def __init__(
        self, name: str, text: str, constant: Mapping[str, str], labels: Sequence[str], new_child: Callable[[], AnyChild]
    ) -> None:
        self._name = name
        self._text = text
        self._constant = constant
        self._labels = [*constant, *labels]
        self._new_child: Callable[[], AnyChild] = new_child
        self._children: dict[tuple[str, ...], AnyChild] = {}

    def of(self, **labels: str) -> AnyChild:
        """The child for these labels."""
        given = {**self._constant, **labels}
        key = tuple(given[label] for label in self._labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._new_child()
        return child


class OneWriterCounter(_Family[Count]):
    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, constant: Mapping[str, str], labels: Sequence[str] = ()
    ) -> None:
        super().__init__(name, text, constant, labels, Count)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for key, count in list(self._children.items()):
            family.add_metric(key, count.value)
        yield family


class OneWriterHistogram(_Family[Buckets]):
    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, constant: Mapping[str, str], bounds: Sequence[float]
    ) -> None:
        super().__init__(name, text, constant, (), lambda: Buckets(bounds))
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for key, buckets in list(self._children.items()):
            family.add_metric(key, *buckets.read())
        yield family
