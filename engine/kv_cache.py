"""Who holds which KV block: reservations, the prefix cache and its eviction. One facade, one lock."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from engine.block_allocator import BlockAllocator, OutOfBlocks
from engine.cache_feed import CacheFeed, Changes
from protocol.block_hash import chained_hashes
from protocol.errors import ServalError
from telemetry.metrics import Metrics


class BrokenBooks(ServalError):
    """The cache's books contradict themselves: a bug of ours."""


class KVCache:
    """Every block is in exactly one state: free, held (by one or more sequences) or cached (by none, but findable by its hash).

    A cached block keeps its content until it is evicted, least recently used first, for an allocation. A held block may be
    findable too; then several sequences can hold it, and none of them writes to it: only full blocks are findable.
    Whoever takes blocks here gives each back with exactly one `release`. Safe to use from any thread.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True, metrics: Metrics | None = None) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._metrics = metrics
        self._lock = threading.Lock()
        self._allocator = BlockAllocator(num_blocks)
        self._holders = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._claim = 0
        self._feed: CacheFeed | None = None
        self.on_allocate: Callable[[list[int]], None] | None = None
        """Called with blocks that are taken for writing, before anybody has them; by any thread, with the lock held."""

    # ---- questions

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return self._allocator.num_free

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds and whose content a prompt may find."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.num_free - self.num_cached

    @property
    def usage(self) -> float:
        """Share of the pool that sequences hold, 0 to 1."""
        return self.num_held / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, count: int) -> bool:
        """Whether `allocate(count)` would succeed now."""
        with self._lock:
            return count + self._claim <= self._available()

    # ---- acts

    def match_prefix(self, tokens: Sequence[int], *, again: bool = False) -> tuple[list[int], int]:
        """The longest cached beginning of `tokens`: its blocks, now held by the caller too, and how many tokens they cover.

        At least the last token stays to be computed, for its logits are not cached. `again`: a repeated look-up, not counted.
        """
        matchable = (len(tokens) - 1) // self.block_size * self.block_size
        blocks: list[int] = []
        if self._prefix_cache:
            with self._lock:
                for block_hash in chained_hashes(tokens[:matchable], self.block_size):
                    block = self._block_of.get(block_hash)
                    if block is None:
                        break
                    self._hold(block)
                    blocks.append(block)
        matched = len(blocks) * self.block_size
        if self._metrics is not None and self._prefix_cache and not again:
            self._metrics.prefix_cache_queries.of().inc(len(tokens))
            self._metrics.prefix_cache_hits.of().inc(matched)
        return blocks, matched

    def allocate(self, count: int, *, after: int | None = None, claimed: bool = False) -> list[int]:
        """Takes `count` blocks for writing, evicting cached ones as needed; best right after block `after`.

        `claimed` may use up what `claim` set apart. Raises OutOfBlocks, and takes nothing, where there are not enough.
        """
        with self._lock:
            available = self._available() - (0 if claimed else self._claim)
            if count > available:
                raise OutOfBlocks(f"{count} KV blocks wanted, {max(0, available)} available")
            while self._allocator.num_free < count:
                self._evict()
            blocks = self._allocator.allocate(count, after)
            for block in blocks:
                self._holders[block] = 1
            if self.on_allocate is not None:
                self.on_allocate(blocks)
            return blocks

    def claim(self, count: int) -> None:
        """Sets `count` blocks apart for preempted sequences, so that new ones cannot starve them. Replaces the last claim."""
        with self._lock:
            self._claim = count

    def commit(self, tokens: Sequence[int], blocks: Sequence[int], computed_tokens: int) -> None:
        """Makes the full blocks among the first `computed_tokens` of `tokens`, which `blocks` hold, findable.

        Content that another block already holds stays findable there. The caller still holds its blocks.
        """
        if not self._prefix_cache:
            return
        full = computed_tokens // self.block_size
        hashes = list(chained_hashes(tokens[: full * self.block_size], self.block_size))
        with self._lock:
            for block, block_hash in zip(blocks, hashes, strict=False):
                if block not in self._hash_of and block_hash not in self._block_of:
                    self._hash_of[block] = block_hash
                    self._block_of[block_hash] = block
                    if self._feed is not None:
                        self._feed.note(block_hash, stored=True)

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back one hold of each block. Findable blocks become cached, the others free."""
        with self._lock:
            # The end of a prefix is of use only with its beginning, so the end is evicted first.
            for block in reversed(blocks):
                if self._holders[block] <= 0:
                    raise BrokenBooks(f"KV block {block} released more often than held")
                self._holders[block] -= 1
                if self._holders[block] > 0:
                    continue
                if block in self._hash_of:
                    self._cached[block] = None
                else:
                    self._allocator.free([block])

    # ---- what routers hear of it

    def watch(self, on_change: Callable[[], None]) -> None:
        """From now on changes of the findable set are gathered for `take_changes`; see CacheFeed for `on_change`."""
        with self._lock:
            self._feed = CacheFeed(on_change)

    def unwatch(self) -> None:
        """Nothing is gathered any more, and nothing of it costs anything."""
        with self._lock:
            self._feed = None

    def take_changes(self) -> Changes:
        """What changed since the last call, or since `watch`. Each hash is in one of both lists at most, by its last state."""
        with self._lock:
            is_stored, overflowed = self._feed.take() if self._feed is not None else ({}, False)
        stored = [block_hash for block_hash, is_there in is_stored.items() if is_there]
        evicted = [block_hash for block_hash, is_there in is_stored.items() if not is_there]
        return Changes(stored, evicted, overflowed)

    def findable(self) -> list[bytes]:
        """The hash of every block that a prompt may find now, oldest first."""
        with self._lock:
            return list(self._block_of)

    def check_integrity(self) -> None:
        """Raises BrokenBooks unless free + cached + held is the pool and every hash, hold and cached block agrees."""
        with self._lock:
            for block, holders in enumerate(self._holders):
                states = (self._allocator.is_free(block), block in self._cached, holders > 0)
                if sum(states) != 1:
                    raise BrokenBooks(f"KV block {block} is free, cached, held: {states}")
            findable = {block: block_hash for block_hash, block in self._block_of.items()}
            if findable != self._hash_of:
                raise BrokenBooks("the prefix cache's two indexes differ")
            if not self._cached.keys() <= findable.keys():
                raise BrokenBooks("a cached KV block cannot be found")
            if any(self._allocator.is_free(block) for block in findable):
                raise BrokenBooks("a free KV block can be found")

    # ---- with the lock held

    def _available(self) -> int:
        return self._allocator.num_free + len(self._cached)

    def _hold(self, block: int) -> None:
        self._holders[block] += 1
        self._cached.pop(block, None)

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hash_of.pop(block)
        del self._block_of[block_hash]
        if self._feed is not None:
            self._feed.note(block_hash, stored=False)
        self._allocator.free([block])
