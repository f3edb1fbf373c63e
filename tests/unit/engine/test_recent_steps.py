"""An engine's own recent speed."""

import pytest

from engine.batch import Span
from engine.recent_steps import STALE_S, RecentSteps
from engine.scheduler import Schedule
from engine.sequence import Sequence
from protocol.sampling import SamplingParams


def sequence(given: int, output: int = 0) -> Sequence:
    one = Sequence("s", list(range(given)), SamplingParams())
    for token in range(output):
        one.append(token)
    return one


def step(recent: RecentSteps, seconds: float, *spans: Span) -> None:
    recent.observe(Schedule(list(spans), [], 0), seconds)


PROMPT = Span(sequence(600), 0, 500)
ANSWER = Span(sequence(10, output=3), 12, 13)


@pytest.fixture
def recent() -> RecentSteps:
    """After the first step of either kind, which were slow and do not count."""
    recent = RecentSteps()
    step(recent, 10.0, PROMPT)
    step(recent, 10.0, ANSWER)
    assert (recent.prefill_tokens_per_s, recent.step_s) == (0, 0)
    return recent


def test_prompts_alone_and_answers_alone(recent: RecentSteps) -> None:
    step(recent, 0.1)
    assert (recent.prefill_tokens_per_s, recent.step_s) == (0, 0), "nothing was computed"
    step(recent, 0.5, PROMPT)
    assert recent.prefill_tokens_per_s == pytest.approx(1000)
    assert recent.step_s == 0
    step(recent, 0.02, ANSWER)
    assert recent.step_s == pytest.approx(0.02)
    assert recent.prefill_tokens_per_s == pytest.approx(1000)


def test_a_shared_step_is_split_by_tokens_for_the_prompt_and_whole_for_the_answers(recent: RecentSteps) -> None:
    step(recent, 0.5, Span(sequence(600), 0, 99), ANSWER)
    assert recent.prefill_tokens_per_s == pytest.approx(99 / (0.5 * 0.99))
    assert recent.step_s == pytest.approx(0.5)


def test_the_step_after_a_transfer_is_a_decode_step(recent: RecentSteps) -> None:
    """Its prompt's KV came from elsewhere; only the token that prefill drew is left to compute."""
    moved = sequence(100)
    moved.num_computed = 100
    moved.append(7)
    step(recent, 0.01, Span(moved, 100, 101))
    assert (recent.prefill_tokens_per_s, recent.step_s) == (0, pytest.approx(0.01))


def test_what_nothing_renews_is_not_told_for_ever() -> None:
    now = 0.0
    recent = RecentSteps(clock=lambda: now)
    for span in (PROMPT, ANSWER, PROMPT, ANSWER):
        step(recent, 0.5, span)
    assert (recent.prefill_tokens_per_s, recent.step_s) == (pytest.approx(1000), 0.5)
    now = STALE_S / 2
    step(recent, 0.5, ANSWER)
    now = STALE_S
    assert (recent.prefill_tokens_per_s, recent.step_s) == (0, 0.5)


def test_a_step_that_brings_several_tokens_is_so_much_shorter_for_each(recent: RecentSteps) -> None:
    guessed, other = sequence(10, output=3), sequence(10, output=3)
    spans = [Span(guessed, 12, 16, (1, 2, 3)), Span(other, 12, 13)]
    for token in (1, 2, 9):
        guessed.append(token)
    other.append(5)
    step(recent, 0.06, *spans)
    assert recent.step_s == pytest.approx(0.03)


def test_what_a_token_costs_is_learned_from_steps_of_several_sizes(recent: RecentSteps) -> None:
    for _ in range(20):
        step(recent, 0.02, ANSWER)
    assert recent.decode_cost == (pytest.approx(0.02), 0.0), "nothing tells what a second one would cost"
    for size in (1, 5, 9, 3) * 5:
        step(recent, 0.018 + 0.002 * size, Span(sequence(10, output=3), 12, 12 + size, (0,) * (size - 1)))
        step(recent, 1.0, PROMPT, ANSWER)
    fixed_s, per_token_s = recent.decode_cost
    assert fixed_s == pytest.approx(0.018, rel=0.05)
    assert per_token_s == pytest.approx(0.002, rel=0.1)
