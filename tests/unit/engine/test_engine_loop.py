"""The engine's thread: works while there is work, sleeps, survives a failing step, closes in time."""

import queue
from collections.abc import Iterator

import pytest

from engine.batch import Batch
from engine.loop import EngineLoop
from engine.sequence import SequenceUpdate
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine, greedy, random_prompt

DEADLINE_S = 20.0


class Running:
    def __init__(self, under_test: EngineUnderTest) -> None:
        self.under_test = under_test
        self.updates: queue.Queue[SequenceUpdate] = queue.Queue()
        self.loop = EngineLoop(under_test.engine, lambda updates: [self.updates.put(update) for update in updates] and None)
        self.loop.start()

    def final(self) -> SequenceUpdate:
        while True:
            update = self.updates.get(timeout=DEADLINE_S)
            if update.finish:
                self.under_test.engine.release(update.sequence)
                return update


class Faults:
    """A layer hook that raises while told to."""

    def __init__(self) -> None:
        self.active = False

    def __call__(self, layer: int, batch: Batch) -> None:
        if self.active:
            raise RuntimeError("the device failed")


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def running(make_engine: MakeEngine, faults: Faults) -> Iterator[Running]:
    started = Running(make_engine(blocks=16, on_layer=faults))
    yield started
    assert started.loop.close(DEADLINE_S)


def test_requests_one_after_another_and_at_once(running: Running, make_engine: MakeEngine) -> None:
    expected = {str(i): make_engine().answer(random_prompt(20, i)) for i in range(4)}
    running.loop.submit(greedy("0", random_prompt(20, 0)))
    assert running.final().sequence.output == expected["0"]
    for i in range(1, 4):
        running.loop.submit(greedy(str(i), random_prompt(20, i)))
    finals = [running.final() for _ in range(3)]
    assert {final.request_id: final.sequence.output for final in finals} == {name: expected[name] for name in "123"}
    assert running.loop.steps > 0


def test_abort_reaches_a_running_sequence(running: Running) -> None:
    sequence = greedy("endless", random_prompt(5), max_tokens=10_000)
    running.loop.submit(sequence)
    assert running.updates.get(timeout=DEADLINE_S).finish is None
    running.loop.abort("endless")
    assert running.final().finish == "aborted"


def test_a_blocked_sequence_goes_on_once_blocks_are_given_back(running: Running) -> None:
    cache = running.under_test.engine.kv_cache
    elsewhere = cache.allocate(15)
    running.loop.submit(greedy("blocked", random_prompt(40)))
    with pytest.raises(queue.Empty):
        running.updates.get(timeout=0.2)
    cache.release(elsewhere)
    assert running.final().finish == "length"


def test_failing_steps_end_their_sequences_and_then_health(running: Running, faults: Faults) -> None:
    faults.active = True
    for number in range(3):
        assert running.loop.is_healthy
        running.loop.submit(greedy(str(number), random_prompt(5)))
        final = running.final()
        assert (final.request_id, final.finish) == (str(number), "error")
    assert not running.loop.is_healthy
    faults.active = False
    running.loop.submit(greedy("well", random_prompt(5)))
    assert running.final().finish == "length"
    assert running.loop.is_healthy


def test_a_publisher_that_raises_does_not_stop_the_loop(make_engine: MakeEngine) -> None:
    calls: queue.Queue[int] = queue.Queue()

    def publish(updates: list[SequenceUpdate]) -> None:
        calls.put(len(updates))
        raise ValueError("nobody listens")

    loop = EngineLoop(make_engine().engine, publish)
    loop.start()
    loop.submit(greedy("r", random_prompt(5), max_tokens=3))
    assert [calls.get(timeout=DEADLINE_S) for _ in range(3)] == [1, 1, 1]
    assert loop.close(DEADLINE_S)
    assert not loop.is_healthy
