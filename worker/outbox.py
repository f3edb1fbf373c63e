"""What a worker keeps for a router that has not taken it yet: bounded, whatever the router does."""

import asyncio
from collections.abc import AsyncIterator, Callable

from protocol import cluster_pb2


class Outbox:
    """Messages of one stream, in order. Holds at most `max_bytes` of them beside the one or two that go out next: with the message
    that would be more, all are dropped, `on_full` is called once, and the outbox takes nothing any more. Event loop only."""

    def __init__(self, max_bytes: int, on_full: Callable[[], None]) -> None:
        self._max_bytes = max_bytes
        self._on_full = on_full
        self._messages: asyncio.Queue[tuple[cluster_pb2.FromWorker, int] | None] = asyncio.Queue()
        self._is_full = False
        self.waiting_bytes = 0

    def put(self, message: cluster_pb2.FromWorker) -> None:
        """It must not be changed afterwards. Dropped where the outbox has been full."""
        if self._is_full:
            return
        # Reading a message's size costs a third of writing it, so one that goes out at once is not measured.
        size_bytes = 0 if self._messages.empty() else message.ByteSize()
        if self.waiting_bytes + size_bytes > self._max_bytes:
            self._is_full = True
            self._clear()
            self._on_full()
            return
        self.waiting_bytes += size_bytes
        self._messages.put_nowait((message, size_bytes))

    def close(self) -> None:
        """The stream ends behind what was put until now."""
        self._messages.put_nowait(None)

    async def messages(self) -> AsyncIterator[cluster_pb2.FromWorker]:
        """Until it is closed. For one reader, which asks for the next when the transport has taken the last."""
        while (entry := await self._messages.get()) is not None:
            message, size_bytes = entry
            self.waiting_bytes -= size_bytes
            yield message

    def _clear(self) -> None:
        while not self._messages.empty():
            self._messages.get_nowait()
        self.waiting_bytes = 0
