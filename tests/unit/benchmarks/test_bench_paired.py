"""Ratios of two things measured in turns, and verdicts."""

import pytest

from benchmarks.paired import Machine, Paired, Verdict, order


def test_the_ratio_is_taken_round_by_round() -> None:
    # The machine became twice as slow half way: each round's ratio is 0.5 all the same, the medians' is not.
    paired = Paired.of([1.0, 1.0, 2.0], [2.0, 2.0, 4.0])
    assert (paired.ratio, paired.smallest_ratio, paired.largest_ratio) == (0.5, 0.5, 0.5)
    assert (paired.our_median, paired.their_median) == (1.0, 2.0)


def test_a_round_in_which_theirs_was_nothing_has_no_ratio() -> None:
    assert Paired.of([1.0, 1.0], [0.0, 4.0]).ratio == 0.25
    assert Paired.of([1.0], [0.0]).ratio is None


def test_rounds_must_match() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        Paired.of([1.0, 2.0], [1.0])


def test_each_goes_first_in_turn() -> None:
    assert [order(number) for number in range(3)] == [(True, False), (False, True), (True, False)]


@pytest.mark.parametrize(
    ("verdict", "met"),
    [
        (Verdict(what="x", measured=0.35, at_most=0.35), True),
        (Verdict(what="x", measured=0.36, at_most=0.35), False),
        (Verdict(what="x", measured=1.7, at_least=1.7), True),
        (Verdict(what="x", measured=1.6, at_least=1.7), False),
        (Verdict(what="x", measured=None, at_most=1.0), False),
    ],
)
def test_a_verdict_is_met_only_by_a_measurement_within_its_bound(verdict: Verdict, met: bool) -> None:
    assert verdict.met is met
    assert ("MISSED" in str(verdict)) is not met


def test_a_busy_machine_is_named() -> None:
    quiet = Machine.here().model_copy(update={"load": 0.1})
    assert quiet.cores >= 1 and quiet.processor
    assert quiet.warning() is None
    assert "busy" in (quiet.model_copy(update={"load": 3.0}).warning() or "")
