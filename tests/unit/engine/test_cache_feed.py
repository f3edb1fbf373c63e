"""A listener that follows the feed knows the findable set, whenever it began to listen and whatever it missed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import cache_feed
from engine.kv_cache import KVCache
from protocol.block_hash import chained_hashes

BLOCK = 4


def use(cache: KVCache, tokens: list[int]) -> None:
    """One prompt computed and gone."""
    held, _ = cache.match_prefix(tokens)
    held += cache.allocate(cache.blocks_for(len(tokens)) - len(held))
    cache.commit(tokens, held, len(tokens))
    cache.release(held)


def test_nothing_is_gathered_before_watch_and_after_unwatch() -> None:
    cache, calls = KVCache(8, BLOCK), []
    use(cache, list(range(8)))
    assert cache.take_changes() == cache_feed.Changes([], [])
    cache.watch(lambda: calls.append("changed"))
    cache.unwatch()
    use(cache, list(range(100, 108)))
    assert calls == []
    assert cache.take_changes() == cache_feed.Changes([], [])


def test_the_first_change_calls_and_further_ones_do_not_until_it_was_taken() -> None:
    cache, calls = KVCache(8, BLOCK), []
    cache.watch(lambda: calls.append("changed"))
    use(cache, list(range(8)))
    use(cache, list(range(100, 108)))
    assert calls == ["changed"]
    assert len(cache.take_changes().stored) == 4
    use(cache, list(range(200, 208)))
    assert calls == ["changed", "changed"]


def test_only_the_last_state_of_a_block_is_told() -> None:
    cache = KVCache(2, BLOCK)
    cache.watch(lambda: None)
    first, second = list(range(8)), list(range(100, 108))
    for tokens in (first, second, first):  # each evicts the one before
        use(cache, tokens)
    changes = cache.take_changes()
    assert set(changes.stored) == set(chained_hashes(first, BLOCK))
    assert set(changes.evicted) == set(chained_hashes(second, BLOCK))


def test_too_many_changes_become_the_full_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_feed, "MAX_GATHERED", 3)
    cache, calls = KVCache(16, BLOCK), []
    cache.watch(lambda: calls.append("changed"))
    use(cache, list(range(16)))
    assert cache.take_changes() == cache_feed.Changes([], [], overflowed=True)
    assert len(cache.findable()) == 4
    use(cache, list(range(100, 104)))
    assert len(cache.take_changes().stored) == 1
    assert calls == ["changed", "changed"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["use", "use", "use", "look", "listen"]), st.integers(0, 5), st.integers(1, 5))))
def test_whoever_follows_knows_the_findable_set(steps: list[tuple[str, int, int]]) -> None:
    cache = KVCache(6, BLOCK)
    cache.watch(lambda: None)
    followers: list[set[bytes]] = [set()]
    for what, start, blocks in steps:
        if what == "use":
            use(cache, list(range(start, start + blocks * BLOCK)))
        elif what == "listen":  # between two looks: what is pending is in the full set already
            followers.append(set(cache.findable()))
        else:
            changes = cache.take_changes()
            followers = [(known - set(changes.evicted)) | set(changes.stored) for known in followers]
            assert all(known == set(cache.findable()) for known in followers)
