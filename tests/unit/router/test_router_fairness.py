"""Fairness in seconds: the real dispatcher before engines with limits, on a clock that jumps from event to event. So the figures
are those of the decisions alone, the same on every machine; benchmarks/fairness.py measures whole processes."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from benchmarks.limited_worker import HEARTBEAT_S, LimitedEngine, Limits, hello_of
from benchmarks.quantiles import percentile
from protocol import cluster_pb2
from protocol.errors import Overloaded
from protocol.ids import RequestId
from protocol.sampling import SamplingParams
from router.request import GenerateSpec, Request
from router.tenants.caller import Caller
from router.tenants.tenant import LimitReached
from router.workers import Worker
from tests.unit.router.dispatch_world import World

LIMITS = Limits(sequences=16, prefill_tokens_per_s=20_000.0, step_s=0.01)
WORKERS = 4
PROMPT_TOKENS, ANSWER_TOKENS = 256, 8
COMPUTE_S = PROMPT_TOKENS / LIMITS.prefill_tokens_per_s
SECONDS, SETTLE_S = 25.0, 5.0
MEASURED_RATE = 20.0
LIMIT_PER_MINUTE, TIMES = 120, 20


class JumpingLoop(asyncio.SelectorEventLoop):
    """Where others wait for a timer, its clock goes there at once."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen"
        self._loop.now += max(0.0, timeout)
        return super().select(0)


def simulate(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


async def run_worker(world: World, number: int) -> None:
    worker = world.members.join(hello_of(number, "m", LIMITS), 0.0)

    def say(outputs: list[cluster_pb2.RequestOutput]) -> None:
        world.dispatcher.on_step(worker, cluster_pb2.StepOutput(outputs=outputs))

    engine = LimitedEngine(LIMITS, say)
    await asyncio.gather(engine.run(), _obey(worker, engine), _report(world, worker, engine))


async def _obey(worker: Worker, engine: LimitedEngine) -> None:
    while True:
        engine.obey(await worker.outbox.get())


async def _report(world: World, worker: Worker, engine: LimitedEngine) -> None:
    while True:
        world.dispatcher.on_load(worker, engine.load, asyncio.get_running_loop().time())
        await asyncio.sleep(HEARTBEAT_S)


async def send(world: World, tenant: str, rate: float, seconds: float, accepted: list[Request]) -> None:
    """Poisson; the same arrivals in each simulation."""
    random = Random(tenant)
    spec = GenerateSpec((7,) * PROMPT_TOKENS, SamplingParams(max_tokens=ANSWER_TOKENS))
    while asyncio.get_running_loop().time() < seconds:
        await asyncio.sleep(random.expovariate(rate))
        try:
            accepted.append(world.dispatcher.accept(RequestId("r"), spec, Caller(tenant)))
        except (LimitReached, Overloaded):
            assert tenant != "measured", "it keeps its limits"


def first_tokens(offender: str | None, rate: float, seconds: float = SECONDS) -> tuple[list[float], int]:
    """Seconds to the measured tenant's first tokens beside that offender, and how many of the latter's requests were accepted."""
    tenants: dict[str, Any] = {"measured": {}, "limited": {"requests_per_minute": LIMIT_PER_MINUTE}, "unlimited": {}}
    measured: list[Request] = []
    others: list[Request] = []

    async def main() -> None:
        world = World(tenants=tenants, policy="least_loaded")
        workers = [asyncio.create_task(run_worker(world, number)) for number in range(WORKERS)]
        sending = [send(world, "measured", MEASURED_RATE, seconds, measured)]
        if offender is not None:
            sending.append(send(world, offender, rate, seconds, others))
        await asyncio.gather(*sending)
        await asyncio.sleep(1)
        world.dispatcher.end_all("over")
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    simulate(main)
    later = [request for request in measured if request.timeline.arrived > SETTLE_S]
    return [request.figures.ttft_s for request in later], len(others)


@pytest.fixture(scope="module")
def alone() -> list[float]:
    samples, _ = first_tokens(None, 0)
    assert len(samples) > 300 and min(samples) == pytest.approx(COMPUTE_S)
    return samples


def test_a_tenant_at_twenty_times_its_limit_hardly_moves_another_s_first_tokens(alone: list[float]) -> None:
    beside, accepted = first_tokens("limited", TIMES * LIMIT_PER_MINUTE / 60)
    assert accepted == pytest.approx(LIMIT_PER_MINUTE * (1 + SECONDS / 60), rel=0.05), "a minute's worth, and what grew since"
    assert len(beside) == len(alone)
    assert percentile(beside, 99) <= 1.10 * percentile(alone, 99)


def test_a_tenant_without_a_limit_that_asks_for_more_than_there_is_costs_others_one_turn(alone: list[float]) -> None:
    seconds = 10.0
    beside, accepted = first_tokens("unlimited", 2 * WORKERS / COMPUTE_S, seconds)
    assert accepted > seconds * WORKERS / COMPUTE_S, "as much as can be computed, and a full line"
    # What lies at a worker when the turn comes: prompts of `prefill_window_s`, one beyond it, and the own one.
    assert percentile(beside, 99) <= percentile(alone, 99) + 0.05 + 3 * COMPUTE_S
    assert max(beside) < 0.5
