"""A worker keeps one stream to every router behind a name, as routers come and go."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from protocol import cluster_pb2, cluster_pb2_grpc
from worker.config import LinkConfig
from worker.router_link import RouterLink
from worker.router_links import RouterLinks, look_up

WAIT_S = 10.0
CONFIG = LinkConfig(reconnect_min_s=0.01, reconnect_max_s=0.02, resolve_period_s=0.01, resolve_timeout_s=0.2)


class Idle:
    def on_submit(self, link: RouterLink, submit: cluster_pb2.Submit) -> None: ...

    def on_cancel(self, link: RouterLink, request: int) -> None: ...

    def on_lost(self, link: RouterLink) -> None: ...


class Welcoming(cluster_pb2_grpc.RouterLinkServicer):
    """A router that says when a worker joins and when it says that it drains."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.server = grpc.aio.server()
        cluster_pb2_grpc.add_RouterLinkServicer_to_server(self, self.server)

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.read()
        await context.write(cluster_pb2.FromRouter(welcome=cluster_pb2.Welcome(router=cluster_pb2.Peer(name="r"))))
        self.events.put_nowait("joined")
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            if message.WhichOneof("kind") == "draining":
                self.events.put_nowait("draining")

    async def next_event(self) -> str:
        return await asyncio.wait_for(self.events.get(), WAIT_S)


class Name:
    """A DNS name whose addresses the test sets. `asked` is set at each look-up."""

    def __init__(self) -> None:
        self.addresses: set[str] | Exception = set()
        self.hangs = False
        self.asked = asyncio.Event()

    async def resolve(self, name: str, port: int) -> set[str]:
        assert (name, port) == ("routers.test", 8002)
        self.asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return set(self.addresses)

    async def asked_again(self) -> None:
        """Two more look-ups have begun, so what the first of them found has been followed."""
        for _ in range(2):
            self.asked.clear()
            await asyncio.wait_for(self.asked.wait(), WAIT_S)


@pytest.fixture
async def routers() -> AsyncIterator[dict[str, Welcoming]]:
    """Two, by address."""
    found = {}
    for _ in range(2):
        router = Welcoming()
        port = router.server.add_insecure_port("127.0.0.1:0")
        await router.server.start()
        found[f"127.0.0.1:{port}"] = router
    yield found
    for router in found.values():
        await router.server.stop(0)


@pytest.fixture
async def name() -> Name:
    return Name()


@pytest.fixture
async def links(name: Name) -> AsyncIterator[RouterLinks]:
    def make_link(address: str) -> RouterLink:
        return RouterLink(address, cluster_pb2.Hello(), lambda router: cluster_pb2.LoadReport(), Idle(), CONFIG)

    found = RouterLinks(["dns:routers.test:8002"], make_link, CONFIG, name.resolve)
    found.start()
    yield found
    await found.stop()
    assert repr(found) == "RouterLinks()"


async def test_a_router_that_comes_is_joined_and_the_first_one_keeps_its_stream(
    routers: dict[str, Welcoming], name: Name, links: RouterLinks
) -> None:
    (first, router), (second, other) = routers.items()
    name.addresses = {first}
    assert await router.next_event() == "joined"
    name.addresses = {first, second}
    assert await other.next_event() == "joined"
    assert links.has_joined
    assert router.events.empty()


async def test_a_failed_look_up_changes_nothing(routers: dict[str, Welcoming], name: Name, links: RouterLinks) -> None:
    (first, router), (second, other) = routers.items()
    name.addresses = {first}
    assert await router.next_event() == "joined"
    name.addresses = OSError("no such name")
    await name.asked_again()
    name.hangs = True
    await name.asked_again()  # each is given up in time
    assert f"RouterLink({first}, live)" in repr(links)
    name.hangs, name.addresses = False, {first, second}
    assert await other.next_event() == "joined"


async def test_a_router_out_of_dns_is_kept_while_it_lives_and_forgotten_after(
    routers: dict[str, Welcoming], name: Name, links: RouterLinks
) -> None:
    (first, router), (second, other) = routers.items()
    name.addresses = {first, second}
    assert await router.next_event() == "joined"
    assert await other.next_event() == "joined"
    name.addresses = {second}
    await name.asked_again()
    assert f"RouterLink({first}, live)" in repr(links)
    await router.server.stop(0)
    async with asyncio.timeout(WAIT_S):
        while first in repr(links):
            await name.asked_again()
    assert links.has_joined


async def test_who_drains_says_so_to_routers_found_later(routers: dict[str, Welcoming], name: Name, links: RouterLinks) -> None:
    (first, router), (second, other) = routers.items()
    name.addresses = {first}
    assert await router.next_event() == "joined"
    links.say_draining()
    assert await router.next_event() == "draining"
    name.addresses = {first, second}
    assert [await other.next_event(), await other.next_event()] == ["joined", "draining"]


async def test_the_systems_resolver_gives_each_address_once() -> None:
    assert await look_up("localhost", 8002) == {"127.0.0.1:8002"}
    with pytest.raises(socket.gaierror):
        await look_up("no-such-name.invalid", 8002)
