"""The threshold finds the break-even of whatever the two ways cost, and stays within its bounds on the way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decode.break_even import BreakEven

BLOCK, CHUNK = 16, 512
Cost = Callable[[int], float]


@dataclass
class World:
    """What either way costs, with a tenth of noise; prompts whose uncached rests are drawn from `lengths`."""

    here: Cost
    elsewhere: Cost
    running: int = 0
    lengths: Callable[[Random], int] = lambda random: random.choice((8, 20, 50, 120, 300, 800, 2000))
    random: Random = field(default_factory=lambda: Random(1))
    computed_here: list[int] = field(default_factory=list)
    computed_elsewhere: list[int] = field(default_factory=list)

    def run(self, break_even: BreakEven, prompts: int) -> int:
        for _ in range(prompts):
            tokens = self.lengths(self.random)
            noise = self.random.uniform(0.9, 1.1)
            if break_even.choose(tokens) is not None:
                self.computed_here.append(tokens)
                break_even.observe_here(tokens, self.here(tokens) * noise, self.running)
            else:
                self.computed_elsewhere.append(tokens)
                break_even.observe_elsewhere(tokens, self.elsewhere(tokens) * noise, self.running)
            assert BLOCK <= break_even.max_tokens <= CHUNK
        return break_even.max_tokens


def line(fixed_s: float, per_token_s: float) -> Cost:
    return lambda tokens: fixed_s + per_token_s * tokens


def test_it_starts_with_one_block() -> None:
    break_even = BreakEven("auto", BLOCK, CHUNK)
    assert break_even.max_tokens == BLOCK
    assert (break_even.choose(16), break_even.choose(17)) == ("short", None)


@pytest.mark.parametrize("setting", [0, 100])
def test_a_number_stays_what_it_is(setting: int) -> None:
    break_even, world = BreakEven(setting, BLOCK, CHUNK), World(line(0, 1), line(1, 0))
    for _ in range(300):
        tokens = world.lengths(world.random)
        assert (break_even.choose(tokens) is not None) == (tokens <= setting)
        break_even.observe_here(tokens, 0.001, 0)
        break_even.observe_elsewhere(tokens, 10.0, 0)
    assert break_even.max_tokens == setting


@pytest.mark.parametrize(
    ("here", "elsewhere", "running", "expected"),
    [
        # The same speed at both: nothing runs here, so it pays up to the cap.
        (line(0.002, 0.0005), line(0.030, 0.0005), 0, (400, CHUNK)),
        # Two answers running: 0.028 s saved / (0.0005 * 3 - 0.0005) = 28 tokens.
        (line(0.002, 0.0005), line(0.030, 0.0005), 2, (16, 48)),
        # A prefill worker ten times as fast: 0.058 / (0.0005 - 0.00005) = 129 tokens.
        (line(0.002, 0.0005), line(0.060, 0.00005), 0, (96, 176)),
        # A transfer that costs nothing.
        (line(0.010, 0.001), line(0.005, 0.0001), 0, (BLOCK, BLOCK)),
    ],
)
def test_it_finds_the_break_even(here: Cost, elsewhere: Cost, running: int, expected: tuple[int, int]) -> None:
    world = World(here, elsewhere, running)
    low, high = expected
    assert low <= world.run(BreakEven("auto", BLOCK, CHUNK), 1500) <= high


def test_it_follows_when_the_costs_change() -> None:
    break_even = BreakEven("auto", BLOCK, CHUNK)
    far = World(line(0.002, 0.0005), line(0.200, 0.0005))
    assert far.run(break_even, 1500) >= 400
    near = World(line(0.002, 0.0005), line(0.004, 0.0001))
    assert near.run(break_even, 3000) == BLOCK
    assert far.run(break_even, 3000) >= 400


def test_it_keeps_trying_both_ways_but_seldom() -> None:
    break_even = BreakEven("auto", BLOCK, CHUNK)
    short = World(line(0.002, 0.0005), line(0.030, 0.0005), lengths=lambda _: 10)
    short.run(break_even, 1000)
    assert 10 <= len(short.computed_elsewhere) <= 40
    cheap = World(line(0.010, 0.001), line(0.005, 0.0001), lengths=lambda random: random.choice((40, 50, 60)))
    cheap.run(BreakEven("auto", BLOCK, CHUNK), 1000)
    assert 10 <= len(cheap.computed_here) <= 40


def test_no_trial_is_longer_than_the_cap() -> None:
    world = World(line(0.0, 0.00001), line(1.0, 0.1))
    world.run(BreakEven("auto", BLOCK, 64), 1000)
    assert max(world.computed_here) <= 64


def test_one_stray_observation_changes_nothing() -> None:
    break_even, world = BreakEven("auto", BLOCK, CHUNK), World(line(0.002, 0.0005), line(0.060, 0.00005))
    before = world.run(break_even, 1500)
    break_even.observe_elsewhere(600, 30.0, 0)  # a new connection
    for _ in range(8):
        break_even.observe_here(50, 0.027, 0)
    assert break_even.max_tokens <= 1.6 * before


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.floats(0, 0.1), min_size=4, max_size=4),
    running=st.integers(0, 64),
    seed=st.integers(0, 99),
)
def test_whatever_it_costs_it_stays_within_its_bounds_and_settles(costs: list[float], running: int, seed: int) -> None:
    break_even = BreakEven("auto", BLOCK, CHUNK)
    world = World(line(costs[0], costs[1] / 100), line(costs[2], costs[3] / 100), running, random=Random(seed))
    world.run(break_even, 800)
    seen = {world.run(break_even, 8) for _ in range(25)}
    assert len(seen) <= 8, "it does not swing"


def test_answers_of_one_token_do_not_count_as_less_than_none() -> None:
    thresholds = []
    for running in (0, -1):
        break_even = BreakEven("auto", BLOCK, CHUNK)
        for tokens in (20, 50, 120) * 100:
            break_even.observe_here(tokens, 0.001 * tokens, running)
            break_even.observe_elsewhere(tokens, 0.05 + 0.0001 * tokens, 0)
        thresholds.append(break_even.max_tokens)
    assert thresholds[0] == thresholds[1] < CHUNK
