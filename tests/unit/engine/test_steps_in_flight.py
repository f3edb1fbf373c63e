"""Steps launched before the results of those before them are read: the same answers, nothing shown that came after an end."""

import threading
from collections.abc import Iterator

import pytest

from engine.engine import Engine
from engine.forward_pass import ForwardPass
from engine.sequence import Sequence, SequenceUpdate
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine, greedy, random_prompt

DEADLINE_S = 20.0


def assert_balanced(under_test: EngineUnderTest) -> None:
    cache = under_test.engine.kv_cache
    cache.check_integrity()
    assert cache.num_held == 0
    assert cache.num_free + cache.num_cached == cache.num_blocks


def published(under_test: EngineUnderTest, sequence: Sequence) -> list[int]:
    return [token for update in under_test.updates if update.sequence is sequence for token in update.token_ids]


def mixed(stops: dict[str, int]) -> list[Sequence]:
    """Of all lengths and ways of drawing; some end midway at the tokens in `stops`, some by themselves at different times."""
    settings: list[dict[str, object]] = [
        {"max_tokens": 30},
        {"max_tokens": 7, "temperature": 1.0, "seed": 3},
        {"max_tokens": 30, "temperature": 0.8, "top_p": 0.9, "seed": 4, "logprobs": 2},
        {"max_tokens": 40, "min_tokens": 12, "ignore_eos": False},
        {"max_tokens": 25, "repetition_penalty": 1.3},
        {"max_tokens": 1},
        {"max_tokens": 22, "temperature": 1.3, "top_k": 20, "seed": 5, "presence_penalty": 0.5},
        {"max_tokens": 33, "logit_bias": {7: 2.0}},
    ]
    sequences = []
    for index, params in enumerate(settings):
        name = str(index)
        stop = {"stop_token_ids": (stops[name],)} if name in stops else {}
        sequences.append(greedy(name, random_prompt(5 + 13 * index, index), **params, **stop))
    return sequences


def stops_midway(make_engine: MakeEngine) -> dict[str, int]:
    """Tokens that some of the answers have in the middle."""
    free = mixed({})
    make_engine().finish(*free)
    return {sequence.request_id: sequence.output[len(sequence.output) // 2] for sequence in (free[0], free[2], free[7])}


@pytest.mark.parametrize("steps_in_flight", [2, 4])
@pytest.mark.parametrize("blocks", [256, 26], ids=["roomy", "tight"])
def test_the_same_answers(make_engine: MakeEngine, steps_in_flight: int, blocks: int) -> None:
    stops = stops_midway(make_engine)
    expected, sequences = mixed(stops), mixed(stops)
    one, several = make_engine(blocks=blocks), make_engine(blocks=blocks, steps_in_flight=steps_in_flight)
    finals = one.finish(*expected)
    found = several.finish(*sequences)
    assert [sequence.output for sequence in sequences] == [sequence.output for sequence in expected]
    assert {name: update.finish for name, update in found.items()} == {name: update.finish for name, update in finals.items()}
    assert {finals[name].finish for name in stops} == {"stop"}
    for sequence in sequences:
        assert published(several, sequence) == sequence.output
    assert [update.logprobs for update in several.updates if update.request_id == "2"] == [
        update.logprobs for update in one.updates if update.request_id == "2"
    ]
    if blocks < 256:
        assert several.metrics.value("serval_num_preemptions_total") > 0
    assert_balanced(several)


@pytest.mark.parametrize("steps_in_flight", [2, 4])
def test_sequences_that_come_and_go_meanwhile(make_engine: MakeEngine, steps_in_flight: int) -> None:
    """Every third is aborted, each of the others answers as if alone."""
    engine, alone = make_engine(steps_in_flight=steps_in_flight, max_sequences=4), make_engine()
    sequences = [
        greedy(str(i), random_prompt(10 + 9 * i, i), max_tokens=20, temperature=0.5 * (i % 2), seed=i) for i in range(9)
    ]
    for sequence in sequences:
        engine.engine.submit(sequence)
        for _ in range(5):
            engine.step()
        if int(sequence.request_id) % 3 == 0:
            engine.engine.abort(sequence.request_id)
    finals = engine.finish()
    for i, sequence in enumerate(sequences):
        whole = alone.answer(random_prompt(10 + 9 * i, i), max_tokens=20, temperature=0.5 * (i % 2), seed=i)
        if i % 3 == 0:
            assert finals[str(i)].finish == "aborted"
            assert sequence.output == whole[: len(sequence.output)]
        else:
            assert sequence.output == whole
        assert published(engine, sequence) == sequence.output
    assert_balanced(engine)


class Gate:
    """Lets a model's thread compute only as many steps as the test allows."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allowed = threading.Semaphore(0)
        self.failing = False
        compute = ForwardPass._compute

        def gated(*arguments: object) -> object:
            assert self._allowed.acquire(timeout=DEADLINE_S)
            if self.failing:
                raise RuntimeError("the device failed")
            return compute(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(ForwardPass, "_compute", gated)

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)


@pytest.fixture
def two(make_engine: MakeEngine) -> EngineUnderTest:
    return make_engine(steps_in_flight=2)


@pytest.fixture
def gate(two: EngineUnderTest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(two.engine, monkeypatch)
    yield gate
    gate.allow(100)


def finals(updates: list[SequenceUpdate]) -> list[tuple[str, str]]:
    return [(update.request_id, update.finish) for update in updates if update.finish]


def test_the_next_step_is_launched_before_this_one_is_read(two: EngineUnderTest, gate: Gate) -> None:
    two.engine.submit(greedy("r", random_prompt(20), max_tokens=9))
    gate.allow(1)
    assert len(two.step()) == 1
    assert len(two.engine._in_flight) == 1, "one was read, one is under way"
    assert not two.engine.is_idle
    gate.allow(8)
    assert finals([update for _ in range(8) for update in two.step()]) == [("r", "length")]
    assert two.engine.steps == 9, "how long the answer is at most is known ahead"
    assert_balanced(two)


def test_blocks_stay_while_a_step_may_write_to_them(two: EngineUnderTest, gate: Gate) -> None:
    gate.allow(4)
    first, second, *_ = two.answer(random_prompt(20), max_tokens=4)
    assert first != second
    sequence = greedy("r", random_prompt(20), max_tokens=9, stop_token_ids=(second,))
    two.engine.submit(sequence)
    gate.allow(2)
    two.engine.step()
    assert finals(two.engine.step()) == [("r", "stop")]
    two.engine.release(sequence)
    assert two.engine.kv_cache.num_held == len(sequence.blocks) == 2, "a step that was launched before the end was known"
    assert not two.engine.is_idle
    with pytest.raises(AssertionError, match="twice"):
        two.engine.release(sequence)
    gate.allow(1)
    assert two.engine.step() == []
    assert two.engine.is_idle
    assert sequence.output == [first, second]
    assert_balanced(two)


def test_a_step_that_fails_ends_all_that_went_on_from_it(two: EngineUnderTest, gate: Gate, make_engine: MakeEngine) -> None:
    for name in ("a", "b"):
        two.engine.submit(greedy(name, random_prompt(20), max_tokens=50))
    gate.allow(2)
    two.step()
    two.step()
    gate.failing = True
    gate.allow(2)
    with pytest.raises(RuntimeError) as raised:
        two.step()
    updates = two.engine.fail(raised.value)
    assert sorted(finals(updates)) == [("a", "error"), ("b", "error")]
    assert len(two.engine._in_flight) == 0
    for update in updates:
        two.engine.release(update.sequence)
    assert_balanced(two)
    gate.failing = False
    gate.allow(20)
    again = greedy("again", random_prompt(30))
    two.finish(again)
    gate.allow(20)
    assert again.output == make_engine().answer(random_prompt(30))
