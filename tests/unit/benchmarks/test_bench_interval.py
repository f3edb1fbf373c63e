"""The interval says what a noisy comparison is worth."""

from random import Random

import pytest

from benchmarks.interval import FEWEST_PAIRS, Interval
from benchmarks.paired import Paired


def noisy(spread: float, pairs: int = 60) -> Paired:
    """Ours takes 2 % longer; either side's turns vary by a factor of two from pair to pair, and by `spread` within one."""
    random = Random(1)
    theirs = [random.uniform(1, 2) for _ in range(pairs)]
    return Paired.of([each * 1.02 * random.uniform(1 - spread, 1 + spread) for each in theirs], theirs)


def test_it_holds_the_ratio_and_narrows_with_the_spread() -> None:
    wide, narrow = Interval.of(noisy(0.2)), Interval.of(noisy(0.01))
    assert wide is not None and narrow is not None
    assert wide.low < narrow.low < 1.02 < narrow.high < wide.high
    assert narrow.ratio == pytest.approx(1.02, abs=3e-3)


def test_it_narrows_with_the_pairs() -> None:
    few, many = Interval.of(noisy(0.2, 20)), Interval.of(noisy(0.2, 500))
    assert few is not None and many is not None
    assert many.high - many.low < (few.high - few.low) / 2


def test_one_pair_in_ten_says_nothing() -> None:
    pairs = noisy(0.01)
    spoiled = Paired.of([ours * (5 if n % 10 == 0 else 1) for n, ours in enumerate(pairs.ours)], pairs.theirs)
    found = Interval.of(spoiled)
    assert found is not None and found.ratio == pytest.approx(1.02, abs=5e-3)


def test_the_same_pairs_give_the_same() -> None:
    assert Interval.of(noisy(0.2)) == Interval.of(noisy(0.2))


def test_too_few_pairs_have_none() -> None:
    assert Interval.of(noisy(0.1, FEWEST_PAIRS - 1)) is None
