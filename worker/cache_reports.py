"""Tells routers which KV blocks a prompt would find in this worker's prefix cache, so that they can place by it.

Each router gets the full set when its stream begins (`reset`), then changes in order: the first at once, further ones at most
once per period. While no router listens nothing is gathered.
"""

import asyncio
import itertools
from collections.abc import Iterable, Iterator

from engine.kv_cache import KVCache
from protocol import cluster_pb2
from protocol.block_hash import short_hash
from worker.router_link import RouterLink

HASHES_PER_MESSAGE = 65_536
"""Half a megabyte. The full set of a large cache goes in several messages."""


class CacheReports:
    """Lives on the event loop; the cache is changed by any thread."""

    def __init__(self, kv_cache: KVCache, period_s: float) -> None:
        self._kv_cache = kv_cache
        self._period_s = period_s
        self._links: list[RouterLink] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0

    def add(self, link: RouterLink) -> None:
        """The link is live: it hears everything now, and changes from now on."""
        self._loop = asyncio.get_running_loop()
        if not self._links:
            self._sent_at = self._loop.time() - self._period_s
            self._kv_cache.watch(self._on_change)
        self._links.append(link)
        self._send([link], reset=True, stored=self._kv_cache.findable(), evicted=[])

    def remove(self, link: RouterLink) -> None:
        """The link is down; it will be added again when it is live again."""
        self._links.remove(link)
        if not self._links:
            self._kv_cache.unwatch()

    def _on_change(self) -> None:
        """In any thread, with the cache's lock held."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._schedule)

    def _schedule(self) -> None:
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_at(self._sent_at + self._period_s, self._send_changes)

    def _send_changes(self) -> None:
        self._timer = None
        if not self._links or self._loop is None:
            return
        self._sent_at = self._loop.time()
        changes = self._kv_cache.take_changes()
        if changes.overflowed:
            self._send(self._links, reset=True, stored=self._kv_cache.findable(), evicted=[])
        elif changes.stored or changes.evicted:
            self._send(self._links, reset=False, stored=changes.stored, evicted=changes.evicted)

    @staticmethod
    def _send(links: Iterable[RouterLink], *, reset: bool, stored: list[bytes], evicted: list[bytes]) -> None:
        for change in _messages(reset, stored, evicted):
            message = cluster_pb2.FromWorker(cache=change)
            for link in links:
                link.send_message(message)


def _messages(reset: bool, stored: list[bytes], evicted: list[bytes]) -> Iterator[cluster_pb2.CacheChange]:
    """At least one message, the first with `reset`."""
    gone, there = _batches(evicted), _batches(stored)
    yield cluster_pb2.CacheChange(reset=reset, evicted=next(gone, []), stored=next(there, []))
    for more_gone, more_there in itertools.zip_longest(gone, there, fillvalue=()):
        yield cluster_pb2.CacheChange(evicted=more_gone, stored=more_there)


def _batches(hashes: list[bytes]) -> Iterator[list[int]]:
    for first in range(0, len(hashes), HASHES_PER_MESSAGE):
        yield [short_hash(block_hash) for block_hash in hashes[first : first + HASHES_PER_MESSAGE]]
