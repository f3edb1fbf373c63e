"""What metrics there are: for dashboards and rules, which are made of these names and so cannot name one that does not exist."""

from dataclasses import dataclass
from typing import Literal, cast

from prometheus_client.metrics import MetricWrapperBase

from telemetry.metrics import Bound, Metrics
from telemetry.one_writer import OneWriterCounter, OneWriterHistogram
from telemetry.read_counter import ReadCounter

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Family:
    """One metric. `name` is without the suffixes of its kind; `labels` hold also those that every sample has."""

    name: str
    kind: Kind
    labels: frozenset[str]
    text: str


def catalogue() -> dict[str, Family]:
    """Every metric of Serval by its name."""
    metrics = Metrics("any", "any")
    labels = {_registered(metric): _labels(metric) for metric in vars(metrics).values() if _is_metric(metric)}
    return {
        family.name: Family(family.name, cast(Kind, family.type), labels[family.name], family.documentation)
        for family in metrics.registry.collect()
    }


def _is_metric(value: object) -> bool:
    return isinstance(value, Bound | OneWriterCounter | OneWriterHistogram | ReadCounter)


def _registered(metric: object) -> str:
    name = str(_inner(metric)._name)
    return name.removesuffix("_total")


def _labels(metric: object) -> frozenset[str]:
    inner = _inner(metric)
    return frozenset(inner._labelnames if isinstance(inner, MetricWrapperBase) else inner._labels)


def _inner(metric: object) -> MetricWrapperBase | OneWriterCounter | OneWriterHistogram | ReadCounter:
    """The library gives no public way to a metric's label names."""
    return metric._metric if isinstance(metric, Bound) else cast(OneWriterCounter, metric)
