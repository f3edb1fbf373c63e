"""A counter whose values are kept elsewhere, and read when somebody asks for the metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

Values = Mapping[tuple[str, ...], float]
"""By the values of the labels, the constant ones left out."""


class ReadCounter(Collector):
    """Shows nothing until it is told where to read."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, constant: Mapping[str, str], labels: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._text = text
        self._constant = constant
        self._labels = [*constant, *labels]
        self._read: Callable[[], Values] = dict
        registry.register(self)

    def read_from(self, read: Callable[[], Values]) -> None:
        """`read` is called in whatever thread asks; its values never fall."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for key, value in self._read().items():
            family.add_metric([*self._constant.values(), *key], value)
        yield family
