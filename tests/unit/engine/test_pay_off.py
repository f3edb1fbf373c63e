"""The decision whether to guess: the best rate, found against trying everything; off and on again for a request."""

import itertools
import random

import pytest

from engine.speculation.pay_off import FIRST_WAIT, LONGEST_WAIT, Odds, PayOff, best_counts


def rate(offers: list[tuple[float, int]], others: int, counts: tuple[int, ...], fixed_s: float, per_token_s: float) -> float:
    tokens = others + sum(odds**power for (odds, _), count in zip(offers, counts, strict=True) for power in range(count + 1))
    return tokens / (fixed_s + per_token_s * (others + len(offers) + sum(counts)))


def test_the_best_counts_are_those_of_the_best_rate() -> None:
    drawn, seen = random.Random(1), set()
    for _ in range(300):
        offers = [(drawn.choice([0.02, 0.3, 0.6, 0.8, 0.97, 1.0]), drawn.randint(0, 3)) for _ in range(drawn.randint(1, 4))]
        fixed_s, per_token_s = drawn.choice([0.1, 1.0, 10.0]), drawn.choice([0.1, 0.5, 3.0])
        others = drawn.randint(0, 4)
        counts = best_counts(offers, others, fixed_s, per_token_s)
        every = itertools.product(*(range(available + 1) for _, available in offers))
        best = max(rate(offers, others, one, fixed_s, per_token_s) for one in every)
        assert rate(offers, others, tuple(counts), fixed_s, per_token_s) == pytest.approx(best)
        seen.add(sum(counts) / max(1, sum(available for _, available in offers)))
    assert min(seen) == 0.0
    assert max(seen) == 1.0
    assert len(seen) > 4


def test_what_costs_nothing_is_all_taken_and_what_costs_its_share_is_not() -> None:
    assert best_counts([(0.1, 8), (0.9, 3)], 0, 0.02, 0.0) == [8, 3]
    assert best_counts([(0.1, 8), (0.9, 3)], 0, 0.0, 0.0) == [8, 3], "nothing was measured yet"
    assert best_counts([(0.9, 8), (0.6, 8)], 0, 0.0, 0.01) == [0, 0], "a pass of two tokens takes twice as long"
    assert best_counts([], 3, 1.0, 1.0) == []


def test_wide_batches_compute_fewer_guesses_each() -> None:
    widths = {width: best_counts([(0.8, 8)] * width, 0, 0.01, 0.001)[0] for width in (1, 4, 16, 64, 256)}
    assert list(widths.values()) == sorted(widths.values(), reverse=True)
    assert widths[1] >= 5
    assert widths[256] == 0
    assert best_counts([(0.8, 8)], 255, 0.01, 0.001) == [0], "one that guesses among many that do not"


def test_odds_follow_what_became_of_the_last_guesses() -> None:
    odds = Odds()
    assert odds.value == 1.0
    odds.add(4, 0)
    assert odds.value == pytest.approx(0.5, abs=0.01)
    for _ in range(60):
        odds.add(4, 4)
    assert odds.value > 0.98
    for _ in range(40):
        odds.add(4, 1)  # one of two: of the third and fourth nothing is known
    assert odds.value == pytest.approx(0.5, abs=0.05)


def test_a_request_that_does_not_pay_is_tried_ever_more_rarely() -> None:
    pay_off = PayOff()
    assert pay_off.settle(5) == 5
    assert pay_off.is_on
    tried = [turn for turn in range(400) if pay_off.settle(0)]
    assert not pay_off.is_on
    waits = [after - before for before, after in itertools.pairwise([0, *tried])]
    assert waits[:4] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT, LONGEST_WAIT]
    assert set(waits[4:]) == {LONGEST_WAIT}


def test_a_try_that_holds_brings_the_next_one_soon_and_then_it_is_on_again() -> None:
    pay_off = PayOff()
    for _ in range(20):
        pay_off.observe(4, 0)
    while sum(pay_off.settle(0) for _ in range(LONGEST_WAIT)) > 1:
        pass
    low = pay_off.odds
    pay_off.observe(1, 1)
    assert pay_off.odds > low
    assert [pay_off.settle(0) for _ in range(FIRST_WAIT)] == [0] * (FIRST_WAIT - 1) + [1]
    assert pay_off.settle(3) == 3
    assert pay_off.is_on


def test_a_run_of_guesses_starts_with_one_and_doubles_while_all_hold() -> None:
    pay_off = PayOff()
    reached = []
    for guesses, held in ((1, 1), (2, 2), (4, 4), (8, 3), (3, 3), (6, 0), (1, 0), (1, 1)):
        reached.append(pay_off.reach)
        pay_off.observe(guesses, held)
    assert reached == [1, 2, 4, 8, 3, 6, 1, 1]
    assert pay_off.reach == 2
