"""The index against a naive model: a set of blocks per worker, and what is expected of it until when."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol import cluster_pb2
from router.placement.prefix_index import PrefixIndex

A, B, C = 11, 22, 33
"""Workers, by incarnation."""


def stored(*blocks: int) -> cluster_pb2.CacheChange:
    return cluster_pb2.CacheChange(stored=blocks)


def full(*blocks: int) -> cluster_pb2.CacheChange:
    return cluster_pb2.CacheChange(reset=True, stored=blocks)


def evicted(*blocks: int) -> cluster_pb2.CacheChange:
    return cluster_pb2.CacheChange(evicted=blocks)


@pytest.mark.parametrize(
    ("reports", "prompt", "expected"),
    [
        ([], (1, 2), (0, 0)),
        ([(A, full())], (1, 2), (0, 0)),
        ([(A, full(1, 2, 3))], (), (0, 0)),
        ([(A, full(1, 2, 3))], (1, 2), (2, 0)),
        ([(A, full(1, 2, 3)), (B, full(1, 2))], (1, 2, 3, 4), (3, 2)),
        ([(A, full(2, 3))], (1, 2, 3), (0, 0)),  # without its beginning it is of no use
        ([(A, full(1, 3))], (1, 2, 3), (1, 0)),
        ([(A, full(1, 2)), (A, evicted(2))], (1, 2), (1, 0)),
        ([(A, full(1, 2)), (A, evicted(1, 9))], (1, 2), (0, 0)),
        ([(A, full(1)), (A, stored(2)), (A, stored(2))], (1, 2), (2, 0)),
        ([(A, full(1, 2)), (A, full(7))], (1, 2), (0, 0)),
        ([(A, full(1, 2)), (B, full(1, 2)), (A, evicted(1, 2))], (1, 2), (0, 2)),
    ],
)
def test_matches(
    reports: list[tuple[int, cluster_pb2.CacheChange]], prompt: tuple[int, ...], expected: tuple[int, int]
) -> None:
    index = PrefixIndex(100)
    for worker, change in reports:
        index.update(worker, change)
    assert index.matches(prompt, [A, B], now=0) == dict(zip([A, B], expected, strict=True))


def test_what_was_just_sent_is_expected_until_confirmed_or_overdue() -> None:
    index = PrefixIndex(100)
    index.expect(A, (1, 2, 3), now=0, until=5)
    assert index.matches((1, 2, 3, 4), [A, B], now=4.9) == {A: 3, B: 0}
    index.update(A, stored(1, 2))
    assert index.matches((1, 2, 3), [A], now=5.1) == {A: 2}
    assert index.num_entries == 2


def test_a_worker_that_left_is_forgotten_and_its_place_is_clean() -> None:
    index = PrefixIndex(100)
    index.update(A, full(1, 2))
    index.expect(A, (1, 2, 3), now=0, until=5)
    index.update(B, full(1))
    index.remove(A)
    index.remove(A)
    assert index.num_entries == 1
    index.update(C, full())  # takes the place that A had
    assert index.matches((1, 2, 3), [A, B, C], now=0) == {A: 0, B: 1, C: 0}


def test_the_least_recently_placed_goes_first_and_a_chain_from_its_end() -> None:
    index = PrefixIndex(6)
    index.update(A, full(1, 2, 3))
    index.update(A, stored(11, 12, 13))
    index.expect(A, (1, 2, 3), now=0, until=5)  # used; 11.. is older now
    index.update(A, stored(21, 22))
    assert index.num_entries == 6
    assert index.matches((1, 2, 3), [A], now=0) == {A: 3}
    assert index.matches((11, 12, 13), [A], now=0) == {A: 1}
    assert index.matches((21, 22), [A], now=0) == {A: 2}


def test_expectations_are_bounded_too() -> None:
    index = PrefixIndex(16)
    for start in range(0, 100, 10):
        index.expect(A, (start, start + 1), now=0, until=5)
    assert index.num_entries == 4
    assert index.matches((90, 91), [A], now=0) == {A: 2}
    assert index.matches((0, 1), [A], now=0) == {A: 0}


@dataclass
class Naive:
    held: set[int] = field(default_factory=set)
    expected_until: dict[int, float] = field(default_factory=dict)

    def match(self, hashes: list[int], now: float) -> int:
        for depth, block in enumerate(hashes):
            if block not in self.held and self.expected_until.get(block, 0.0) <= now:
                return depth
        return len(hashes)


BLOCKS = st.lists(st.integers(1, 8), max_size=6, unique=True)
WORKERS = st.sampled_from([A, B, C])


class IndexMachine(RuleBasedStateMachine):
    """Without pressure on its memory the index is exact, whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(10_000)
        self.naive: dict[int, Naive] = {}
        self.now = 1.0

    @rule(worker=WORKERS, reset=st.booleans(), new=BLOCKS, gone=BLOCKS)
    def report(self, worker: int, reset: bool, new: list[int], gone: list[int]) -> None:
        gone = [block for block in gone if block not in new]
        self.index.update(worker, cluster_pb2.CacheChange(reset=reset, stored=new, evicted=gone))
        model = self.naive.setdefault(worker, Naive())
        model.held = ((set() if reset else model.held) - set(gone)) | set(new)
        for block in new:
            model.expected_until.pop(block, None)

    @rule(worker=WORKERS, hashes=BLOCKS)
    def place(self, worker: int, hashes: list[int]) -> None:
        self.index.expect(worker, hashes, self.now, until=self.now + 5)
        model = self.naive.setdefault(worker, Naive())
        for block in hashes:
            if block not in model.held and model.expected_until.get(block, 0.0) <= self.now:
                model.expected_until[block] = self.now + 5

    @rule(worker=WORKERS)
    def leave(self, worker: int) -> None:
        self.index.remove(worker)
        self.naive.pop(worker, None)

    @rule(seconds=st.sampled_from([0.1, 6.0]))
    def wait(self, seconds: float) -> None:
        """Either nothing of what is expected comes due in between, or all of it."""
        self.now += seconds

    @rule(hashes=BLOCKS)
    def ask(self, hashes: list[int]) -> None:
        expected = {worker: self.naive.get(worker, Naive()).match(hashes, self.now) for worker in (A, B, C)}
        assert self.index.matches(hashes, [A, B, C], self.now) == expected

    @invariant()
    def the_count_is_right(self) -> None:
        self.index.matches((), [], self.now)
        held = sum(len(model.held) for model in self.naive.values())
        expected = sum(until > self.now for model in self.naive.values() for until in model.expected_until.values())
        assert self.index.num_entries == held + expected


class CrampedMachine(IndexMachine):
    """Under pressure it may know less than there is, and never more, and stays within its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(8)

    @rule(hashes=BLOCKS)
    def ask(self, hashes: list[int]) -> None:
        for worker, matched in self.index.matches(hashes, [A, B, C], self.now).items():
            model = self.naive.get(worker, Naive())
            known = {block for block in hashes if block in model.held or model.expected_until.get(block, 0.0) > 0}
            assert set(hashes[:matched]) <= known

    @invariant()
    def the_count_is_right(self) -> None:
        assert self.index.num_entries <= 8 + 2


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCramped = CrampedMachine.TestCase
TestCramped.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
