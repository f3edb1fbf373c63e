"""Mock workers' streams to a router, open while the benchmark says what they are to do."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import grpc
import grpc.aio

from benchmarks.router_cost.pipe import Json, serve

JOIN_TIMEOUT_S = 10.0


class MockWorker(Protocol):
    """`run` keeps one stream until it is cancelled, and sets `joined` when the router has welcomed it."""

    joined: asyncio.Event

    async def run(self, channel: grpc.aio.Channel) -> None: ...


async def serve_linked(router: str, workers: Sequence[MockWorker], answer: Callable[[Json], Awaitable[Json]]) -> None:
    """Joins all to the router, one after the other, then answers until stdin ends. A broken stream ends the process: better no
    figures than wrong ones."""
    async with contextlib.AsyncExitStack() as channels, asyncio.TaskGroup() as running:
        tasks = []
        for worker in workers:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await channels.enter_async_context(grpc.aio.insecure_channel(router, options=options))
            tasks.append(running.create_task(worker.run(channel)))
            await asyncio.wait_for(worker.joined.wait(), JOIN_TIMEOUT_S)
        await serve({}, answer)
        for task in tasks:
            task.cancel()
