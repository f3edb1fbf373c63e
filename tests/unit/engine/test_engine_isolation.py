"""What goes wrong with one sequence is that one's end; the others hear of their tokens in the same step."""

import pytest

from engine.ending import Ending
from engine.sequence import Sequence
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine, greedy, random_prompt
from tests.unit.engine.test_engine import assert_balanced


def fail_on(engine: EngineUnderTest, monkeypatch: pytest.MonkeyPatch, request_id: str, after: int) -> None:
    """From its `after`th answer token on, one sequence cannot be looked at without an error."""
    ending = engine.engine.ending

    def failing(sequence: Sequence) -> Ending | None:
        if sequence.request_id == request_id and len(sequence.output) >= after:
            raise ValueError("no such state")
        return ending(sequence)

    monkeypatch.setattr(engine.engine, "ending", failing)


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_a_result_that_cannot_be_taken(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, speculation: str) -> None:
    expected = {name: make_engine().answer(random_prompt(9, i)) for i, name in enumerate("abc")}
    engine = make_engine(speculation=speculation)
    fail_on(engine, monkeypatch, "b", after=3)
    sequences = [greedy(name, random_prompt(9, i)) for i, name in enumerate("abc")]
    for sequence in sequences:
        engine.engine.submit(sequence)
    while not any(update.finish for update in engine.updates):
        last = engine.step()
    assert [(update.request_id, update.finish, len(update.token_ids)) for update in last] == [
        ("a", None, 1),
        ("b", "error", 0),
        ("c", None, 1),
    ]
    assert "no such state" in str(last[1].error)
    engine.finish()
    assert {s.request_id: s.output for s in sequences if s.request_id != "b"} == {"a": expected["a"], "c": expected["c"]}
    assert_balanced(engine)


def test_a_sequence_that_cannot_be_taken_in(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    expected = engine.answer(random_prompt(9))
    fail_on(engine, monkeypatch, "bad", after=1)
    params = greedy("r", [1]).params
    bad, good = (Sequence(name, random_prompt(9), params, output=expected[:2]) for name in ("bad", "good"))
    finals = engine.finish(bad, greedy("new", random_prompt(9)), good)
    assert [finals[name].finish for name in ("bad", "new", "good")] == ["error", "length", "length"]
    assert good.output == expected
    assert_balanced(engine)


def test_an_ending_is_told_even_if_the_step_fails(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    gone, running = greedy("gone", random_prompt(9)), greedy("running", random_prompt(9, 1))
    for sequence in (gone, running):
        engine.engine.submit(sequence)
    engine.step()
    engine.engine.abort("gone")

    def fail(*_: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(engine.engine.model, "forward", fail)
    with pytest.raises(RuntimeError) as raised:
        engine.engine.step()
    updates = engine.engine.fail(raised.value)
    assert {(update.request_id, update.finish) for update in updates} == {("gone", "aborted"), ("running", "error")}
    for sequence in (gone, running):
        engine.engine.release(sequence)
    assert engine.engine.is_idle
    assert_balanced(engine)
