"""What counts as progress, and when its want is a reason to replace a worker."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from engine.sequence import Sequence, SequenceUpdate
from telemetry.metrics import Metrics
from worker import health as module
from worker.config import HealthConfig
from worker.health import PROBE, Health, Look, Progress

CONFIG = HealthConfig(period_s=10, step_timeout_s=60, blocked_timeout_s=300, transfer_timeout_s=30)


def looks(progress: Progress, count: int, **seen: Any) -> list[Look]:
    return [progress.look(1.0, **{"steps": 5, "running": 0, "waiting": 0, "is_probing": False} | seen) for _ in range(count)]


def test_an_idle_engine_is_given_a_step_now_and_then() -> None:
    progress = Progress(CONFIG)
    assert looks(progress, 10) == [Look.FINE] * 10
    assert looks(progress, 1) == [Look.PROBE]
    assert looks(progress, 10, steps=6) == [Look.FINE] * 10, "the probe's step is progress"


@pytest.mark.parametrize(
    ("seen", "seconds"),
    [
        ({"running": 3}, 70),
        ({"waiting": 1, "is_probing": True}, 70),
        ({"running": 1, "is_probing": True}, 70),
        ({"waiting": 2}, 310),
        ({"waiting": 2, "is_probing": True}, 310),
    ],
)
def test_work_without_a_step_is_a_stall_after_its_time(seen: dict[str, Any], seconds: int) -> None:
    progress = Progress(CONFIG)
    progress.look(1.0, steps=5, running=0, waiting=0, is_probing=False)
    assert looks(progress, seconds - 1, **seen) == [Look.FINE] * (seconds - 1)
    assert looks(progress, 1, **seen) == [Look.STUCK]
    assert looks(progress, 1, **seen | {"steps": 6}) == [Look.FINE]


class Engine:
    """Counts as an engine does; makes a step when it is let."""

    def __init__(self) -> None:
        self.steps, self.num_running, self.num_waiting = 0, 0, 0
        self.probe_s = 0.0
        self.released: list[Sequence] = []

    def release(self, sequence: Sequence) -> None:
        self.released.append(sequence)


class Case:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, **config: float) -> None:
        monkeypatch.setattr(module, "LOOK_S", 0.005)
        self.engine, self.metrics, self.proofs = Engine(), Metrics("decode", "decode-0"), 0
        self.submitted: list[Sequence] = []
        settings = HealthConfig(**{"period_s": 0.02, "step_timeout_s": 0.05, "transfer_timeout_s": 60.0} | config)
        self.health = Health(self.engine, self._submit, lambda: self.proofs, settings, self.metrics)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.health.run())

    def _submit(self, sequence: Sequence) -> None:
        self.submitted.append(sequence)
        self.engine.num_waiting += 1

    def make_the_step(self) -> None:
        self.engine.num_waiting, self.engine.steps = 0, self.engine.steps + 1
        self.health.on_updates([SequenceUpdate(PROBE, self.submitted[-1], token_ids=[1], finish="length")])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


async def test_an_engine_that_makes_no_step_is_found_by_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch)
    await case.until(lambda: len(case.submitted) == 1)
    case.make_the_step()
    assert case.engine.released == case.submitted, "its block is given back"
    await case.until(lambda: len(case.submitted) == 2)
    await case.until(lambda: case.health.why_not is not None)
    assert case.health.why_not == "the engine has work and makes no step"
    assert case.metrics.value("serval_health_checks_total", check="engine", result="passed") == 1
    assert case.metrics.value("serval_health_checks_total", check="engine", result="failed") == 1
    case.make_the_step()
    await case.until(lambda: case.health.why_not is None)
    case.task.cancel()


async def test_a_transport_that_moves_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch, period_s=60.0, transfer_timeout_s=0.05)
    for _ in range(5):
        case.proofs += 1
        await asyncio.sleep(0.02)
        assert case.health.why_not is None
    await case.until(lambda: case.health.why_not is not None)
    assert "transport" in (case.health.why_not or "")
    assert case.metrics.value("serval_health_checks_total", check="transfer", result="failed") == 1
    case.task.cancel()
