"""What is said of an overload: goodput by the objective, refusals apart, and when it was over."""

import pytest

from benchmarks.overload_report import Ask, Objective, OverloadReport, Phase, Side, render
from benchmarks.paired import Machine

OBJECTIVE = Objective(ttft_s=1.0, tokens_per_second=10.0)


def good(due_s: float) -> Ask:
    return Ask(due_s=due_s, late_s=0.001, ttft_s=0.5, tokens_per_second=20.0, ended_s=2.0)


def late(due_s: float) -> Ask:
    return good(due_s).model_copy(update={"ttft_s": 1.5})


def slow(due_s: float) -> Ask:
    return good(due_s).model_copy(update={"tokens_per_second": 5.0})


def refused(due_s: float) -> Ask:
    return Ask(due_s=due_s, late_s=0.001, error="HTTP 503: overloaded", ended_s=0.004)


def phase(factor: float, asks: list[Ask], *, is_after: bool = False) -> Phase:
    return Phase(factor=factor, capacity=1.0, seconds=10.0, is_after=is_after, asks=asks, sheds={"predicted_wait": 1.0})


def report(*phases: Phase) -> OverloadReport:
    return OverloadReport(
        machine=Machine.here(),
        input_tokens=8,
        output_tokens=2,
        longest_wait_s=1.0,
        objective=OBJECTIVE,
        window_s=2.0,
        sides=[Side(shedding="predicted_wait", phases=list(phases))],
    )


def test_goodput_counts_what_was_answered_in_time_and_fast_enough() -> None:
    found = phase(1.0, [*map(good, range(6)), late(6), slow(7), refused(8)])
    assert found.goodput(OBJECTIVE) == pytest.approx(0.6)
    assert found.refusal_s == [0.004]


@pytest.mark.parametrize(
    ("asks", "recovered_s"),
    [
        ([good(0.5), good(3)], 0.0),
        ([refused(0.5), good(1), good(5)], 4.0),  # nobody asked from 2 to 4
        ([late(each) for each in range(10)], None),
    ],
)
def test_it_is_over_with_the_first_window_in_which_all_is_well(asks: list[Ask], recovered_s: float | None) -> None:
    assert phase(0.5, asks, is_after=True).recovered_s(OBJECTIVE, 2.0) == recovered_s


@pytest.mark.parametrize(("kept", "met"), [(9, True), (8, False)])
def test_goodput_under_overload_is_held_against_that_at_the_capacity(kept: int, met: bool) -> None:
    base, after = phase(1.0, list(map(good, range(10)))), phase(0.5, [good(1)], is_after=True)
    over = [phase(factor, [*map(good, range(kept)), *map(refused, range(20))]) for factor in (2.0, 4.0)]
    found = report(base, *over, after)
    assert [verdict.met for verdict in found.verdicts()] == [met, met, True, True]
    assert render(found) is not None


def test_what_was_not_measured_is_missed() -> None:
    assert not any(verdict.met for verdict in report(phase(0.5, [])).verdicts())
