"""Where `serval cost` gets its counters: routers' /metrics, or Prometheus."""

import re
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
ROUTERS_OWN = "serval_worker_hour_cost_dollars"
"""Said by every router from its start, and by nobody else."""
GAUGES = ("serval_workers", ROUTERS_OWN)
WINDOW = re.compile(r"([0-9]+(ms|s|m|h|d|w|y))+")


def from_router(client: httpx.Client, url: str) -> list[Sample]:
    """Of the router at `url`. Raises Unavailable, for what is no router's page and for half of one, too: a bill of nothing would
    look like a cluster that costs nothing."""
    text = _get(client, f"{url}/metrics")
    try:
        samples = list(_parse(text))
    except ValueError as error:
        raise Unavailable(f"url: {url}/metrics holds no metrics, or half a page of them: {error}") from error
    if not any(sample.name == ROUTERS_OWN for sample in samples):
        raise Unavailable(f"url: {url}/metrics is not a router's: it says nothing of {ROUTERS_OWN}")
    return samples


def from_prometheus(client: httpx.Client, url: str, window: str) -> list[Sample]:
    """What the counters gained in the last `window` (such as 24h), and the gauges now. Raises Unavailable, and ConfigError for a
    window that Prometheus does not understand."""
    if not WINDOW.fullmatch(window):
        raise ConfigError(f"window: must be a time such as 24h or 1h30m, not {window!r}")
    queries = {name: f"increase({name}[{window}])" for name in REQUEST_COUNTERS} | {name: name for name in GAUGES}
    # Minute by minute the largest: routers count the same workers side by side, and one after the other when they are replaced.
    queries |= {name: f"60 * sum_over_time(max by (pool) (rate({name}[2m]))[{window}:1m])" for name in POOL_COUNTERS}
    samples = [sample for name, query in queries.items() for sample in _query(client, url, name, query)]
    if not samples:
        raise Unavailable(f"prometheus: {url} knows nothing of Serval in the last {window}: does it scrape the routers?")
    return samples


def _query(client: httpx.Client, url: str, name: str, query: str) -> Iterator[Sample]:
    try:
        response = client.get(f"{url}/api/v1/query", params={"query": query}, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Unavailable(f"prometheus: {url} does not answer: {error}") from error
    try:
        answer: dict[str, Any] = response.json()
        if answer["status"] != "success":
            raise ConfigError(f"window: Prometheus refuses {query}: {answer.get('error', response.status_code)}")
        yield from [Sample(name, row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable(f"prometheus: what answers at {url} is not Prometheus (HTTP {response.status_code})") from error


def _get(client: httpx.Client, url: str) -> str:
    try:
        response = client.get(url, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise Unavailable(f"url: {url} does not answer: {error}") from error
    if response.has_redirect_location:
        raise Unavailable(f"url: {url} leads on to {response.headers['location']}: name that address")
    if not response.is_success:
        raise Unavailable(f"url: {url} answers HTTP {response.status_code}: is it a router's HTTP address?")
    return response.text


def _parse(text: str) -> Iterator[Sample]:
    """Raises ValueError."""
    if not text.endswith("\n"):  # the last figure may have lost digits
        raise ValueError("its last line has no end")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Sample(sample.name, sample.labels, sample.value)
