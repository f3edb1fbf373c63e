"""Metrics with one writer look like prometheus_client's own."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from telemetry.one_writer import OneWriterCounter, OneWriterHistogram

BOUNDS = (0.001, 0.5, 1.0, 10.0)
SEEN = [0.0005, 0.001, 0.2, 0.5, 0.7, 1.0, 1.0, 5.0, 11.0]


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_histogram_says_the_same() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = OneWriterHistogram(ours, "a_seconds", "A", {"role": "router"}, BOUNDS).of()
    other = Histogram("a_seconds", "A", ["role"], buckets=BOUNDS, registry=theirs).labels(role="router")
    for value in SEEN:
        mine.observe(value)
        other.observe(value)
    assert samples(ours) == samples(theirs)


def test_a_value_may_be_seen_several_times_at_once() -> None:
    once, often = CollectorRegistry(), CollectorRegistry()
    OneWriterHistogram(once, "a", "A", {}, BOUNDS).of().observe(0.25, 4)
    bucket = OneWriterHistogram(often, "a", "A", {}, BOUNDS).of()
    for _ in range(4):
        bucket.observe(0.25)
    assert samples(once) == samples(often)


def test_a_counter_says_the_same() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = OneWriterCounter(ours, "tokens", "T", {"role": "router"}, ["tenant"])
    other = Counter("tokens", "T", ["role", "tenant"], registry=theirs)
    for tenant, amount in (("a", 3), ("b", 1), ("a", 4)):
        mine.of(tenant=tenant).inc(amount)
        other.labels(role="router", tenant=tenant).inc(amount)
    assert samples(ours) == samples(theirs)
