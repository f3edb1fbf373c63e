"""Blocks: contiguous-first, exactly one state each, found by content, evicted least recently used first."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.block_allocator import BlockAllocator, OutOfBlocks
from engine.kv_cache import BrokenBooks, KVCache
from protocol.block_hash import chained_hashes
from telemetry.metrics import Metrics

BLOCK = 4


def runs(blocks: list[int]) -> int:
    return sum(1 for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1] + 1)


def test_an_allocation_is_one_run_where_one_is_long_enough() -> None:
    allocator = BlockAllocator(100)
    assert runs(allocator.allocate(40)) == 1
    assert runs(allocator.allocate(25)) == 1


def test_fewest_runs_where_none_is_long_enough() -> None:
    allocator = BlockAllocator(20)
    allocator.allocate(20)
    for run in ([2, 3], [5, 6, 7, 8], [10], [12, 13, 14], [16]):
        allocator.free(run)
    assert sorted(allocator.allocate(6)) in ([5, 6, 7, 8, 12, 13], [5, 6, 7, 8, 13, 14])


def test_a_sequence_grows_behind_its_last_block() -> None:
    allocator = BlockAllocator(64)
    sequences = [allocator.allocate(2) for _ in range(4)]
    for _ in range(3):
        for blocks in sequences:
            blocks += allocator.allocate(1, after=blocks[-1])
    assert [runs(blocks) for blocks in sequences] == [1, 1, 1, 1]


def test_too_many_raise_and_take_nothing() -> None:
    allocator = BlockAllocator(8)
    allocator.allocate(5)
    with pytest.raises(OutOfBlocks):
        allocator.allocate(4)
    assert allocator.num_free == 3
    assert len(allocator.allocate(3)) == 3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=60))
def test_allocator_never_hands_out_a_block_twice(steps: list[tuple[int, bool, bool]]) -> None:
    allocator = BlockAllocator(32)
    held: list[list[int]] = []
    for count, gives_back, grows in steps:
        if gives_back and held:
            allocator.free(held.pop(count % len(held)))
        elif count <= allocator.num_free:
            held.append(allocator.allocate(count, after=held[-1][-1] if grows and held and held[-1] else None))
        everything = [block for blocks in held for block in blocks]
        assert len(set(everything)) == len(everything) == 32 - allocator.num_free
        assert all(0 <= block < 32 for block in everything)


def test_hashes_depend_on_all_that_came_before() -> None:
    first, second = chained_hashes([1, 2, 3, 4, 5, 6, 7, 8, 9], BLOCK)
    changed, after_change = chained_hashes([0, 2, 3, 4, 5, 6, 7, 8], BLOCK)
    assert first != changed
    assert second != after_change
    assert next(chained_hashes([1, 2, 3, 4], BLOCK)).hex() == "5c3887ef44b86da26265cb5c108a056b"  # stable over releases


def test_prefix_is_found_but_never_the_whole_prompt() -> None:
    cache = KVCache(16, BLOCK)
    tokens = list(range(12))
    blocks = cache.allocate(3)
    cache.commit(tokens, blocks, 12)
    assert cache.match_prefix(tokens) == (blocks[:2], 8)
    assert cache.match_prefix([*tokens, 99]) == (blocks, 12)
    assert cache.match_prefix([*tokens[:7], 99, 1, 2]) == (blocks[:1], 4)
    for held in (blocks[:2], blocks, blocks[:1], blocks):
        cache.release(held)
    cache.check_integrity()
    assert (cache.num_held, cache.num_cached, cache.num_free) == (0, 3, 13)


def test_only_full_computed_blocks_are_findable() -> None:
    cache = KVCache(16, BLOCK)
    blocks = cache.allocate(3)
    cache.commit(list(range(12)), blocks, 7)
    assert cache.match_prefix(list(range(12))) == (blocks[:1], 4)


def test_eviction_takes_the_least_recently_used_and_the_end_of_a_prefix_first() -> None:
    cache = KVCache(6, BLOCK)
    old, new = cache.allocate(3), cache.allocate(3)
    cache.commit(list(range(12)), old, 12)
    cache.commit(list(range(100, 112)), new, 12)
    cache.release(old)
    cache.release(new)
    held = cache.allocate(1)
    assert held == [old[2]]
    found, count = cache.match_prefix(list(range(12)))
    assert (found, count) == (old[:2], 8)
    assert sorted(cache.allocate(3)) == sorted(new)
    cache.check_integrity()
    with pytest.raises(OutOfBlocks):
        cache.allocate(1)


def test_without_prefix_cache_nothing_is_found() -> None:
    cache = KVCache(4, BLOCK, prefix_cache=False)
    blocks = cache.allocate(2)
    cache.commit(list(range(8)), blocks, 8)
    cache.release(blocks)
    assert cache.match_prefix(list(range(8))) == ([], 0)
    assert cache.num_free == 4


def test_releasing_more_often_than_held_is_refused() -> None:
    cache = KVCache(4, BLOCK)
    blocks = cache.allocate(1)
    cache.release(blocks)
    with pytest.raises(BrokenBooks):
        cache.release(blocks)
    cache.check_integrity()


def test_a_claim_keeps_blocks_from_others() -> None:
    cache = KVCache(8, BLOCK)
    cache.claim(5)
    assert cache.can_allocate(3)
    assert not cache.can_allocate(4)
    with pytest.raises(OutOfBlocks):
        cache.allocate(4)
    assert len(cache.allocate(8, claimed=True)) == 8


def test_integrity_check_sees_a_leak() -> None:
    cache = KVCache(4, BLOCK)
    cache.allocate(2)
    cache._holders[next(block for block in range(4) if cache._holders[block])] = 0
    with pytest.raises(BrokenBooks):
        cache.check_integrity()


def test_look_ups_are_counted_once() -> None:
    metrics = Metrics("decode", "x")
    cache = KVCache(8, BLOCK, metrics=metrics)
    blocks = cache.allocate(2)
    cache.commit(list(range(8)), blocks, 8)
    cache.match_prefix(list(range(9)))
    cache.match_prefix(list(range(9)), again=True)
    assert metrics.value("serval_prefix_cache_queries_total") == 9
    assert metrics.value("serval_prefix_cache_hits_total") == 8


def test_threads_share_it() -> None:
    cache = KVCache(32, BLOCK)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(150):
                tokens = [(seed * turn) % 3] * 13
                matched, _ = cache.match_prefix(tokens)
                fresh = cache.allocate(4 - len(matched))
                cache.commit(tokens, matched + fresh, 13)
                cache.release(matched + fresh)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures
    cache.check_integrity()
    assert cache.num_held == 0


class CacheMachine(RuleBasedStateMachine):
    """Random users of one small cache; a model of the content proves that a found block holds what was asked for."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(12, BLOCK)
        self.content: dict[int, tuple[int, ...]] = {}
        self.held: list[list[int]] = []

    @rule(target=sequences, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=24))
    def start(self, tokens: list[int]) -> tuple[list[int], list[int]] | None:
        blocks, count = self.cache.match_prefix(tokens)
        assert count == len(blocks) * BLOCK < len(tokens)
        for index, block in enumerate(blocks):
            assert self.content[block] == tuple(tokens[: (index + 1) * BLOCK])
        wanted = self.cache.blocks_for(len(tokens)) - len(blocks)
        fits = self.cache.can_allocate(wanted)
        try:
            blocks = blocks + self.cache.allocate(wanted)
        except OutOfBlocks:
            assert not fits
            self.cache.release(blocks)
            return None
        assert fits
        self.held.append(blocks)
        for index in range(count // BLOCK, len(blocks)):
            assert sum(blocks[index] in other for other in self.held) == 1, "a block to be written is held by another"
            self.content[blocks[index]] = tuple(tokens[: (index + 1) * BLOCK])
        return tokens, blocks

    @rule(sequence=consumes(sequences), computed=st.floats(0, 1))
    def end(self, sequence: tuple[list[int], list[int]] | None, computed: float) -> None:
        if sequence is not None:
            tokens, blocks = sequence
            self.cache.commit(tokens, blocks, int(computed * len(tokens)))
            self.held.remove(blocks)
            self.cache.release(blocks)

    @invariant()
    def books_balance(self) -> None:
        self.cache.check_integrity()
        assert self.cache.num_held == len({block for blocks in self.held for block in blocks})
        assert self.cache.usage == self.cache.num_held / 12


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
