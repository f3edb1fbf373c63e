"""A worker's endpoint for operators: figures, and what probes ask."""

from collections.abc import Iterator

import httpx
import pytest

from telemetry.endpoint import MetricsEndpoint
from telemetry.metrics import Metrics


@pytest.fixture
def state() -> dict[str, str | None]:
    return {"/health": None, "/ready": "the worker is starting"}


@pytest.fixture
def url(state: dict[str, str | None]) -> Iterator[str]:
    metrics = Metrics("decode", "decode-0")
    metrics.engine_steps.of().inc(3)
    probes = {"/health": lambda: state["/health"], "/ready": lambda: state["/ready"]}
    endpoint = MetricsEndpoint(metrics, "127.0.0.1", 0, probes)
    yield f"http://{endpoint.address}"
    endpoint.close()


def get(url: str) -> tuple[int, str]:
    response = httpx.get(url, trust_env=False)
    return response.status_code, response.text


def test_it_serves_figures(url: str) -> None:
    status, text = get(f"{url}/metrics")
    assert status == 200
    assert 'serval_engine_steps_total{role="decode",worker="decode-0"} 3.0' in text


def test_a_probe_says_why_not(url: str, state: dict[str, str | None]) -> None:
    assert get(f"{url}/health") == (200, "ok\n")
    assert get(f"{url}/ready") == (503, "the worker is starting\n")
    state["/ready"] = None
    assert get(f"{url}/ready") == (200, "ok\n")
