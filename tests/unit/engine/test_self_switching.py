"""An engine computes the guesses that pay: known costs and odds in, guesses and counters out."""

import pytest

from tests.unit.engine.conftest import MakeEngine, greedy, random_prompt
from tests.unit.engine.speculation_support import foreseeing_engine
from tests.unit.engine.test_engine import assert_balanced

DRAFTED, ACCEPTED = "serval_spec_decode_num_draft_tokens_total", "serval_spec_decode_num_accepted_tokens_total"
SWITCHED_OFF = "serval_spec_decode_switched_off_total"


@pytest.fixture
def answers(make_engine: MakeEngine) -> dict[str, list[int]]:
    plain = make_engine(speculation="off")
    return {str(i): plain.answer(random_prompt(9, i), max_tokens=150) for i in range(2)}


def test_what_never_holds_is_soon_left_alone_and_tried_now_and_then(
    make_engine: MakeEngine, answers: dict[str, list[int]]
) -> None:
    engine = foreseeing_engine(make_engine, answers, right=0.0, costs=(0.010, 0.001))
    sequence = greedy("0", random_prompt(9), max_tokens=150)
    engine.finish(sequence)
    assert sequence.output == answers["0"]
    value = engine.metrics.value
    assert value(SWITCHED_OFF, drafter="foreseeing") == 1
    assert value(ACCEPTED) == sequence.accepted_tokens == 0
    assert 6 <= value(DRAFTED) == sequence.drafted_tokens <= 40
    after_it = greedy("1", random_prompt(9, 1), max_tokens=150)
    engine.finish(after_it)
    assert after_it.output == answers["1"]
    assert after_it.drafted_tokens < sequence.drafted_tokens, "a new request is believed to be like the last ones"
    assert_balanced(engine)


def test_what_always_holds_is_computed_while_a_pass_can_bear_it(make_engine: MakeEngine, answers: dict[str, list[int]]) -> None:
    for costs, least, most in (((0.010, 0.0001), 100, 150), ((0.0, 0.010), 0, 25)):
        engine = foreseeing_engine(make_engine, answers, right=1.0, costs=costs)
        sequences = [greedy(name, random_prompt(9, int(name)), max_tokens=150) for name in answers]
        engine.finish(*sequences)
        for sequence in sequences:
            assert sequence.output == answers[sequence.request_id]
            assert least <= sequence.accepted_tokens <= most, "a pass that takes twice as long for two tokens is not worth it"


def test_counters_by_position_add_up(make_engine: MakeEngine, answers: dict[str, list[int]]) -> None:
    engine = foreseeing_engine(make_engine, answers, right=0.8)
    sequence = greedy("0", random_prompt(9), max_tokens=150)
    engine.finish(sequence)
    name = "serval_spec_decode_num_accepted_tokens_per_pos_total"
    by_position = [engine.metrics.value(name, position=str(position)) for position in range(6)]
    assert by_position == sorted(by_position, reverse=True)
    assert by_position[0] > by_position[3] > 0
    assert sum(by_position) == engine.metrics.value(ACCEPTED) == sequence.accepted_tokens
    assert engine.metrics.value(DRAFTED) == sequence.drafted_tokens > sequence.accepted_tokens
    assert len(sequence.output) == sum(len(update.token_ids) for update in engine.updates) == 150
    assert engine.engine.steps == 150 - sequence.accepted_tokens
