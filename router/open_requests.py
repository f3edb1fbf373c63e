"""The requests that a router has accepted and not ended, and how many of them stream."""

import asyncio
from collections.abc import Iterator

from protocol.lifecycle import Event, State
from router.accounting import Accounting
from router.request import Request


class OpenRequests:
    """Changes of state go through `advance`, but for a submission, which changes no count. So the counts follow from the states,
    whatever fails before or after."""

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._requests: set[Request] = set()
        self._streaming = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """Those of this moment: each may end meanwhile."""
        return iter(list(self._requests))

    @property
    def waiting(self) -> int:
        """Without a token yet, or between two workers."""
        return len(self) - self._streaming

    async def wait_empty(self) -> None:
        await self._is_empty.wait()

    def add(self, request: Request) -> None:
        self._requests.add(request)
        self._is_empty.clear()
        self.advance(request, Event.ADMITTED)

    def advance(self, request: Request, event: Event) -> None:
        """Raises IllegalTransition, and changes nothing then. With its end the request is open no more."""
        lifecycle = request.lifecycle
        was_streaming = lifecycle.state is State.STREAMING
        lifecycle.advance(event)
        self._streaming += (lifecycle.state is State.STREAMING) - was_streaming
        if lifecycle.has_ended:
            self._requests.discard(request)
            if not self._requests:
                self._is_empty.set()
        self._accounting.counts(running=self._streaming, waiting=self.waiting)
