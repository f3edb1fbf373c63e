"""Metrics are read as Prometheus would read them."""

from telemetry.metrics import Metrics
from telemetry.reading import HistogramReading, Values, histogram


def test_counters_and_gauges_add_up_over_their_children() -> None:
    metrics = Metrics("router", "router-0")
    for tenant, outcome, times in (("a", "stop", 2), ("a", "length", 3), ("b", "stop", 5)):
        metrics.requests.of(tenant=tenant, outcome=outcome).inc(times)
    read = Values(metrics.requests)
    assert read.total == 10
    assert read.by("outcome") == {"stop": 7, "length": 3}
    assert read.by("tenant") == {"a": 5, "b": 5}
    assert Values(metrics.rejections).by("reason") == {}


def test_a_histograms_children_are_one() -> None:
    metrics = Metrics("router", "router-0")
    metrics.time_to_first_token.of(tenant="a").observe(0.03)
    metrics.time_to_first_token.of(tenant="b").observe(0.03)
    metrics.time_to_first_token.of(tenant="b").observe(1000.0)
    read = histogram(metrics.time_to_first_token)
    assert (read.count, round(read.sum, 6)) == (3, 1000.06)
    assert dict(read.buckets)[0.02] == 0
    assert dict(read.buckets)[0.04] == dict(read.buckets)[60.0] == 2


def test_what_was_never_observed_has_no_buckets() -> None:
    assert histogram(Metrics("router", "router-0").time_to_first_token) == HistogramReading((), 0, 0.0)


def test_one_writer_metrics_are_read_likewise() -> None:
    metrics = Metrics("router", "router-0")
    metrics.inter_token_latency.of().observe(0.02, 3)
    metrics.generation_tokens.of(tenant="a").inc(4)
    assert histogram(metrics.inter_token_latency).count == 3
    assert Values(metrics.generation_tokens).by("tenant") == {"a": 4}
