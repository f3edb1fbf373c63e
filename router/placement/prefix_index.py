"""The router's approximate view of which worker's prefix cache holds which beginning of a prompt.

Block hashes are chained (protocol/block_hash.py): a block's hash stands for all tokens up to its end. So one flat map from hash
to holders is a radix tree, and walking a prompt's hashes until none holds the next is its longest-prefix search.

Two kinds of entries: what workers have reported, and what is *expected* of them because a prompt was just sent there. The second
kind sends a burst with one system prompt to one worker although nothing of it is computed yet; it is forgotten when the worker
does not confirm it soon.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from protocol import cluster_pb2


@dataclass(frozen=True, order=True)
class _Expectation:
    until: float
    slot: int
    hashes: tuple[int, ...]


class PrefixIndex:
    """Workers are named by incarnation. Approximate in both directions: reports are a little late, and what falls out of the
    memory bound is forgotten. So it may guide a placement, and never more.

    At most `max_entries` pairs of block and worker that were reported are remembered; blocks that no placement used for the
    longest time go first. Expected ones are bounded by a quarter of that, those that are due first go first.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        # Holders are bit masks over slots, a slot per worker: one operation asks about all workers at once.
        self._holders: OrderedDict[int, int] = OrderedDict()
        self._expected: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._held_in: dict[int, set[int]] = {}
        self._expectations: list[_Expectation] = []
        """A heap: the one that is due first is in front."""
        self._num_held = 0
        self._num_expected = 0

    @property
    def num_entries(self) -> int:
        """Pairs of block and worker, reported and expected."""
        return self._num_held + self._num_expected

    # ---- what workers say

    def update(self, worker: int, change: cluster_pb2.CacheChange) -> None:
        """Takes a worker's report. Costs time in proportion to the report; a reset also to what was known of the worker."""
        slot = self._slot_of(worker)
        if change.reset:
            self._drop_held(slot)
        for block in change.evicted:
            self._unhold(slot, block)
        # Chains come beginning first, and the beginning of a chain must be the last that is forgotten.
        for block in reversed(change.stored):
            self._hold(slot, block)
        self._forget_least_used()

    def remove(self, worker: int) -> None:
        """The worker left: forgets all of it, in time proportional to what was known of it."""
        slot = self._slots.pop(worker, None)
        if slot is None:
            return
        self._drop_held(slot)
        del self._held_in[slot]
        for expectation in self._expectations:
            if expectation.slot == slot:
                self._unexpect(expectation)
        self._expectations = [expectation for expectation in self._expectations if expectation.slot != slot]
        heapq.heapify(self._expectations)

    # ---- what placements ask and do

    def matches(self, hashes: Sequence[int], workers: Iterable[int], now: float) -> dict[int, int]:
        """For each worker how many of the leading blocks of `hashes` it holds, or is expected to hold soon. Changes no order
        of use."""
        self._forget_overdue(now)
        matched = dict.fromkeys(workers, 0)
        names = {self._slots[worker]: worker for worker in matched if worker in self._slots}
        remaining = sum(1 << slot for slot in names)
        holders, expected = self._holders, self._expected
        for depth, block in enumerate(hashes):
            holding = remaining & holders.get(block, 0)
            if holding != remaining:
                holding |= remaining & expected.get(block, 0)
                for slot in _bits(remaining & ~holding):
                    matched[names[slot]] = depth
                remaining = holding
                if not remaining:
                    break
        for slot in _bits(remaining):
            matched[names[slot]] = len(hashes)
        return matched

    def expect(self, worker: int, hashes: Sequence[int], now: float, until: float) -> None:
        """A prompt with these blocks was sent to the worker. Marks those that it has as used, and expects the others."""
        self._forget_overdue(now)
        slot = self._slot_of(worker)
        bit = 1 << slot
        new: list[int] = []
        for block in reversed(hashes):
            if block in self._holders:
                self._holders.move_to_end(block)
            if not (self._holders.get(block, 0) | self._expected.get(block, 0)) & bit:
                self._expected[block] = self._expected.get(block, 0) | bit
                new.append(block)
        if new:
            self._num_expected += len(new)
            heapq.heappush(self._expectations, _Expectation(until, slot, tuple(new)))
        while self._num_expected > self._max_entries // 4:
            self._unexpect(heapq.heappop(self._expectations))

    # ---- the books

    def _slot_of(self, worker: int) -> int:
        slot = self._slots.get(worker)
        if slot is None:
            slot = next(number for number in range(len(self._held_in) + 1) if number not in self._held_in)
            self._slots[worker] = slot
            self._held_in[slot] = set()
        return slot

    def _hold(self, slot: int, block: int) -> None:
        bit, holders = 1 << slot, self._holders.get(block, 0)
        self._clear_expected(slot, block)
        if not holders & bit:
            self._held_in[slot].add(block)
            self._num_held += 1
        self._holders[block] = holders | bit
        self._holders.move_to_end(block)

    def _unhold(self, slot: int, block: int) -> None:
        if block not in self._held_in[slot]:
            return
        self._held_in[slot].remove(block)
        self._num_held -= 1
        rest = self._holders[block] & ~(1 << slot)
        if rest:
            self._holders[block] = rest
        else:
            del self._holders[block]

    def _drop_held(self, slot: int) -> None:
        for block in list(self._held_in[slot]):
            self._unhold(slot, block)

    def _forget_least_used(self) -> None:
        while self._num_held > self._max_entries:
            block, holders = self._holders.popitem(last=False)
            for slot in _bits(holders):
                self._held_in[slot].remove(block)
                self._num_held -= 1

    def _forget_overdue(self, now: float) -> None:
        while self._expectations and self._expectations[0].until <= now:
            self._unexpect(heapq.heappop(self._expectations))

    def _unexpect(self, expectation: _Expectation) -> None:
        for block in expectation.hashes:
            self._clear_expected(expectation.slot, block)

    def _clear_expected(self, slot: int, block: int) -> None:
        bit, expected = 1 << slot, self._expected.get(block, 0)
        if expected & bit:
            self._num_expected -= 1
            if expected == bit:
                del self._expected[block]
            else:
                self._expected[block] = expected & ~bit


def _bits(mask: int) -> Iterator[int]:
    """The positions of the ones in `mask`, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
