"""A worker finds out by itself that it makes no progress: with its real engine and its real transport, one of them stuck."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pair_support import Pair, running_pair

from engine.tiny import write_tiny_llama
from worker.config import HealthConfig

pytestmark = pytest.mark.cluster

QUICK = HealthConfig(period_s=0.3, step_timeout_s=1.0, transfer_timeout_s=2.0)


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def passed(pair: Pair, check: str) -> float:
    """The fewer of both workers."""
    return min(
        metrics.value("serval_health_checks_total", check=check, result="passed")
        for metrics in (pair.prefill_metrics, pair.decode_metrics)
    )


async def test_idle_workers_prove_themselves_and_stuck_ones_are_found(tmp_path: Path) -> None:
    go_on = threading.Event()
    async with running_pair(write_tiny_llama(tmp_path), health=QUICK, transfer={"self_check_s": 0.2}) as pair:
        await until(lambda: passed(pair, "engine") >= 2 and passed(pair, "transfer") >= 2)
        assert (pair.prefill.why_not_healthy, pair.decode.why_not_healthy) == (None, None)
        await until(lambda: pair.decode_metrics.value("serval_kv_blocks", state="held") == 0)

        sender, parts = pair.prefill._sender, pair.decode._parts
        assert sender is not None and parts is not None
        sender._inbox.submit(lambda: assert_set(go_on))
        parts.engine.step = lambda: assert_set(go_on) or []  # type: ignore[method-assign]
        try:
            await until(lambda: pair.prefill.why_not_healthy and pair.decode.why_not_healthy)
            assert pair.prefill.why_not_healthy == "the transport moves nothing, not even to itself"
            assert pair.decode.why_not_healthy == "the engine has work and makes no step"
        finally:
            go_on.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)
