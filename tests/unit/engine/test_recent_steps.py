"""An engine's own recent speed."""

import pytest

from engine.batch import Span
from engine.recent_steps import RecentSteps
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


def test_nothing_was_measured_yet() -> None:
    recent = RecentSteps()
    step(recent, 0.1)
    assert (recent.prefill_tokens_per_s, recent.step_s) == (0, 0)


def test_prompts_alone_and_answers_alone() -> None:
    recent = RecentSteps()
    prompt, answer = sequence(600), sequence(10, output=3)
    step(recent, 0.5, Span(prompt, 0, 500))
    assert recent.prefill_tokens_per_s == pytest.approx(1000)
    assert recent.step_s == 0
    step(recent, 0.02, Span(answer, 12, 13))
    assert recent.step_s == pytest.approx(0.02)
    assert recent.prefill_tokens_per_s == pytest.approx(1000)


def test_a_shared_step_is_split_by_tokens_for_the_prompt_and_whole_for_the_answers() -> None:
    recent = RecentSteps()
    step(recent, 0.5, Span(sequence(600), 0, 99), Span(sequence(10, output=3), 12, 13))
    assert recent.prefill_tokens_per_s == pytest.approx(99 / (0.5 * 0.99))
    assert recent.step_s == pytest.approx(0.5)


def test_the_step_after_a_transfer_is_a_decode_step() -> None:
    """Its prompt's KV came from elsewhere; only the token that prefill drew is left to compute."""
    recent = RecentSteps()
    moved = sequence(100)
    moved.num_computed = 100
    moved.append(7)
    step(recent, 0.01, Span(moved, 100, 101))
    assert (recent.prefill_tokens_per_s, recent.step_s) == (0, pytest.approx(0.01))
