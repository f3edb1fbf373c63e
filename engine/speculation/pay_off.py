"""Whether guesses pay: decided from what was measured lately, for every request and every step. Pure.

Guesses are free where a forward pass takes as long for ten tokens as for one, and dear where its time grows with every token. So
each step computes as many of each request's guesses as make the most tokens per second of all of them together, given how likely
each holds and what a pass of so many tokens takes. A request that gets none that way is switched off; now and then one guess is
tried all the same, ever more rarely, for an answer that repeats nothing may begin to.

Of a run of guesses that has just begun little is known, whatever held before: so it starts with one, and doubles while all hold
(slow start, as TCP's: RFC 5681). An answer that repeats loses two steps that way; one that does not computes far less in vain.
"""

import math
from collections.abc import Sequence

FIRST_WAIT = 8
"""Times that a request which was switched off could have guessed before it is tried again; doubled after each try that fails."""

LONGEST_WAIT = 64
"""So a request that never repeats anything computes at most one token in 64 in vain."""

REMEMBERED = 32
"""About so many guesses shape how likely the next one is held to be: few enough to follow an answer from prose into a quotation."""


class Odds:
    """How likely a guess holds, where those before it do: the share of the last ones, the latest counting most."""

    def __init__(self, prior: float = 1.0) -> None:
        """`prior`: what to believe before anything is known; it counts as one guess."""
        self._held = prior
        self._tried = 1.0

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self._held / self._tried

    def add(self, guesses: int, held: int) -> None:
        """Of so many guesses the first `held` did, and if there are more, the next one did not. Of the rest nothing is known."""
        keep = 1 - 1 / REMEMBERED
        for index in range(min(guesses, held + 1)):
            self._held = self._held * keep + (index < held)
            self._tried = self._tried * keep + 1


class PayOff:
    """One request's odds, and whether it is switched off."""

    def __init__(self, prior: float = 1.0) -> None:
        self._odds = Odds(prior)
        self._wait = FIRST_WAIT
        self._left = 0
        self.is_on = True
        self.reach = 1
        """The most guesses to compute in its next step."""

    @property
    def odds(self) -> float:
        return self._odds.value

    def settle(self, worth: int) -> int:
        """How many guesses to compute in a step for which it has some, of which `worth` pay."""
        if worth:
            self.is_on, self._wait = True, FIRST_WAIT
            return worth
        if self.is_on:
            self.is_on, self._left = False, self._wait
            return 0
        self._left -= 1
        if self._left:
            return 0
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._left = self._wait
        return 1

    def observe(self, guesses: int, held: int) -> None:
        """What became of the guesses that a step computed."""
        self._odds.add(guesses, held)
        self.reach = 2 * guesses if held == guesses else max(1, held)
        if held and not self.is_on:
            self._wait = self._left = FIRST_WAIT


def best_counts(offers: Sequence[tuple[float, int]], others: int, fixed_s: float, per_token_s: float) -> list[int]:
    """How many guesses of each sequence to compute so that the step makes the most tokens per second.

    offers: per sequence that has guesses, how likely each holds where those before it do, and how many there are. others: sequences
    in the step that have none. A step of n tokens takes fixed_s + n · per_token_s.

    Dinkelbach, On nonlinear fractional programming, 1967: whatever is better than the best rate found so far is taken, which gives
    a better rate, until nothing is.
    """
    counts = [0] * len(offers)
    rate = 0.0
    while True:
        expected = others + sum(_expected(odds, count) for (odds, _), count in zip(offers, counts, strict=True))
        time_s = fixed_s + per_token_s * (others + len(offers) + sum(counts))
        if time_s <= 0:
            return [available for _, available in offers]  # nothing was measured yet
        if expected / time_s <= rate:
            return counts
        rate = expected / time_s
        counts = [_worth(odds, available, rate * per_token_s) for odds, available in offers]


def _expected(odds: float, count: int) -> float:
    """Tokens that a sequence gets of `count` guesses, the one that is drawn anyway included: 1 + p + p² …"""
    return count + 1.0 if odds >= 1.0 else (1 - odds ** (count + 1)) / (1 - odds)


def _worth(odds: float, available: int, least: float) -> int:
    """How many of its guesses hold with a probability above `least`: p, p², p³ …"""
    if least <= 0.0 or odds >= 1.0:
        return available if least < 1.0 else 0
    if odds <= least:
        return 0
    return min(available, math.ceil(math.log(least) / math.log(odds)) - 1)
