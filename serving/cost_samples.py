"""Where `serval cost` gets its counters: routers' /metrics, or Prometheus."""

from collections.abc import Iterator
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from planner.bill import Sample
from protocol.errors import ConfigError, Unavailable

TIMEOUT_S = 10.0
REQUEST_COUNTERS = ("serval_cost_dollars_total", "serval_prompt_tokens_total", "serval_generation_tokens_total")
"""Each router's own requests."""
POOL_COUNTERS = ("serval_pool_cost_dollars_total", "serval_pool_busy_seconds_total")
"""Of all workers, by every router."""
GAUGES = ("serval_workers", "serval_worker_hour_cost_dollars")


def from_router(client: httpx.Client, url: str) -> list[Sample]:
    """Of the router at `url`. Raises Unavailable."""
    return list(_parse(_get(client, f"{url}/metrics").text))


def from_prometheus(client: httpx.Client, url: str, window: str) -> list[Sample]:
    """What the counters gained in the last `window` (such as 24h), and the gauges now. Raises Unavailable, and ConfigError for a
    window that Prometheus does not understand."""
    queries = {name: f"increase({name}[{window}])" for name in REQUEST_COUNTERS} | {name: name for name in GAUGES}
    # Minute by minute the largest: routers count the same workers side by side, and one after the other when they are replaced.
    queries |= {name: f"60 * sum_over_time(max by (pool) (rate({name}[2m]))[{window}:1m])" for name in POOL_COUNTERS}
    return [sample for name, query in queries.items() for sample in _query(client, url, name, query)]


def _query(client: httpx.Client, url: str, name: str, query: str) -> Iterator[Sample]:
    try:
        response = client.get(f"{url}/api/v1/query", params={"query": query}, timeout=TIMEOUT_S)
        answer: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(f"prometheus: {url} does not answer: {error}") from error
    if answer.get("status") != "success":
        raise ConfigError(f"window: Prometheus refuses {query}: {answer.get('error', response.status_code)}")
    for row in answer["data"]["result"]:
        yield Sample(name, row["metric"], float(row["value"][1]))


def _get(client: httpx.Client, url: str) -> httpx.Response:
    try:
        response = client.get(url, timeout=TIMEOUT_S)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(f"url: {url} does not answer: {error}") from error
    return response


def _parse(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Sample(sample.name, sample.labels, sample.value)
