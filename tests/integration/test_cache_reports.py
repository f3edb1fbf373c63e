"""What routers hear of a worker's prefix cache: the real cache, the real stream, and a router that writes down what it hears."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from engine import cache_feed
from engine.kv_cache import KVCache
from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.block_hash import short_hash
from worker import cache_reports
from worker.cache_reports import CacheReports
from worker.config import LinkConfig
from worker.router_link import RouterLink

BLOCK = 4
WAIT_S = 10.0
PERIOD_S = 0.02


class NoOrders:
    def on_submit(self, link: RouterLink, submit: cluster_pb2.Submit) -> None: ...
    def on_cancel(self, link: RouterLink, request: int) -> None: ...
    def on_lost(self, link: RouterLink) -> None: ...


class ListeningRouter(cluster_pb2_grpc.RouterLinkServicer):
    """Follows one worker's cache as the protocol says; `known` is None until the full set came."""

    def __init__(self) -> None:
        self.known: set[int] | None = None
        self.messages: list[cluster_pb2.CacheChange] = []
        self.heard = asyncio.Condition()

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.read()
        await context.write(cluster_pb2.FromRouter(welcome=cluster_pb2.Welcome(router=cluster_pb2.Peer(name="r"))))
        self.known = None
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            if message.WhichOneof("kind") == "cache":
                async with self.heard:
                    self._take(message.cache)
                    self.heard.notify_all()

    def _take(self, change: cluster_pb2.CacheChange) -> None:
        self.messages.append(change)
        if change.reset:
            self.known = set()
        assert self.known is not None, "a change came before the full set"
        self.known -= set(change.evicted)
        self.known |= set(change.stored)

    async def until_known(self, wanted: set[int]) -> None:
        async with asyncio.timeout(WAIT_S), self.heard:
            await self.heard.wait_for(lambda: self.known == wanted)


@contextlib.asynccontextmanager
async def listening(port: int = 0) -> AsyncIterator[tuple[ListeningRouter, int]]:
    server, router = grpc.aio.server(), ListeningRouter()
    cluster_pb2_grpc.add_RouterLinkServicer_to_server(router, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield router, port
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def linked(cache: KVCache, *ports: int) -> AsyncIterator[list[RouterLink]]:
    reports = CacheReports(cache, PERIOD_S)
    config = LinkConfig(reconnect_min_s=0.01, reconnect_max_s=0.05)
    links = [
        RouterLink(
            f"127.0.0.1:{port}",
            cluster_pb2.Hello(),
            lambda router: cluster_pb2.LoadReport(),
            NoOrders(),
            config,
            watcher=reports,
        )
        for port in ports
    ]
    for link in links:
        link.start()
    try:
        yield links
    finally:
        await asyncio.gather(*(link.stop() for link in links))


def use(cache: KVCache, tokens: list[int]) -> None:
    held, _ = cache.match_prefix(tokens)
    held += cache.allocate(cache.blocks_for(len(tokens)) - len(held))
    cache.commit(tokens, held, len(tokens))
    cache.release(held)


def findable(cache: KVCache) -> set[int]:
    return {short_hash(block_hash) for block_hash in cache.findable()}


async def test_a_router_follows_from_the_full_set_through_every_change() -> None:
    cache = KVCache(8, BLOCK)
    use(cache, list(range(8)))
    async with listening() as (router, port), linked(cache, port):
        await router.until_known(findable(cache))
        for start in range(100, 1000, 100):  # from the engine's thread, and more than the pool holds
            await asyncio.to_thread(use, cache, list(range(start, start + 12)))
        await router.until_known(findable(cache))
    assert [change.reset for change in router.messages] == [True] + [False] * (len(router.messages) - 1)


async def test_bursts_are_gathered() -> None:
    cache = KVCache(512, BLOCK)
    async with listening() as (router, port), linked(cache, port):
        await router.until_known(set())
        for start in range(0, 100_000, 1000):  # a hundred prompts, without a pause for the loop
            use(cache, list(range(start, start + 8)))
        await router.until_known(findable(cache))
    assert len(router.messages) <= 3


async def test_a_router_that_comes_back_begins_with_the_full_set() -> None:
    cache = KVCache(16, BLOCK)
    async with contextlib.AsyncExitStack() as stack:
        async with listening() as (router, port):
            await stack.enter_async_context(linked(cache, port))
            use(cache, list(range(8)))
            await router.until_known(findable(cache))
        use(cache, list(range(100, 108)))  # nobody hears of it
        async with listening(port) as (again, _):
            await again.until_known(findable(cache))
            assert again.messages[0].reset
            use(cache, list(range(200, 208)))
            await again.until_known(findable(cache))
        assert len(findable(cache)) == 6


async def test_two_routers_hear_the_same_and_one_that_is_down_holds_up_nobody() -> None:
    cache = KVCache(16, BLOCK)
    async with (
        listening() as (first, first_port),
        listening() as (second, second_port),
        linked(cache, first_port, second_port, 1),  # nobody listens on port 1
    ):
        use(cache, list(range(8)))
        await first.until_known(findable(cache))
        await second.until_known(findable(cache))
        use(cache, list(range(100, 112)))
        await first.until_known(findable(cache))
        await second.until_known(findable(cache))
        assert first.known == second.known and len(findable(cache)) == 5
        assert [router.messages[0].reset for router in (first, second)] == [True, True]


async def test_an_overflow_is_told_as_the_full_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_feed, "MAX_GATHERED", 4)
    monkeypatch.setattr(cache_reports, "HASHES_PER_MESSAGE", 3)  # and in pieces
    cache = KVCache(16, BLOCK)
    async with listening() as (router, port), linked(cache, port):
        await router.until_known(set())
        use(cache, list(range(40)))
        await router.until_known(findable(cache))
    assert len(findable(cache)) == 10
    assert [change.reset for change in router.messages] == [True, True, False, False, False]


async def test_nothing_is_gathered_while_no_router_listens() -> None:
    cache = KVCache(16, BLOCK)
    async with listening() as (router, port), linked(cache, port) as (link,):
        await router.until_known(set())
        use(cache, list(range(8)))
        await router.until_known(findable(cache))
    assert not link.is_live
    use(cache, list(range(100, 108)))
    assert cache.take_changes() == cache_feed.Changes([], [])
