"""A worker's stream to a router outlives what goes wrong on it."""

import asyncio
from typing import Any

import grpc
import grpc.aio

from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.outcomes import Outcome
from worker.config import LinkConfig
from worker.router_link import RouterLink

WAIT_S = 10.0


class Broken:
    """A handler whose every method has a bug."""

    def on_submit(self, link: RouterLink, submit: cluster_pb2.Submit) -> None:
        raise ValueError("a bug")

    def on_cancel(self, link: RouterLink, request: int) -> None:
        raise ValueError("a bug")

    def on_lost(self, link: RouterLink) -> None:
        raise ValueError("a bug")


class AskingRouter(cluster_pb2_grpc.RouterLinkServicer):
    """Gives each stream two orders, and ends it after the answer to the second."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        await context.read()
        await context.write(cluster_pb2.FromRouter(welcome=cluster_pb2.Welcome(router=cluster_pb2.Peer(name="r"))))
        await context.write(cluster_pb2.FromRouter(cancel=cluster_pb2.Cancel(request=6)))
        await context.write(cluster_pb2.FromRouter(submit=cluster_pb2.Submit(request=7)))
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            for output in message.step.outputs:
                self.ended.put_nowait((output.request, output.ended.outcome))
                return


async def test_an_order_that_fails_ends_its_request_and_a_stream_that_fails_is_dialled_again() -> None:
    server, router = grpc.aio.server(), AskingRouter()
    cluster_pb2_grpc.add_RouterLinkServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = LinkConfig(reconnect_min_s=0.01, reconnect_max_s=0.05)
    link = RouterLink(f"127.0.0.1:{port}", cluster_pb2.Hello(), lambda router: cluster_pb2.LoadReport(), Broken(), config)
    link.start()
    try:
        async with asyncio.timeout(WAIT_S):
            for _ in range(2):
                assert await router.ended.get() == (7, Outcome.INTERNAL)
    finally:
        await link.stop()
        await server.stop(0)
