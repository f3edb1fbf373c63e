"""Admission at the decode worker: first come, first served, and nothing is computed before everything is reserved.

Blocks for the whole prompt and a landing slot are taken in one step. Who does not fit waits in line with his deadline; the line
moves whenever something is given back.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from protocol.errors import Overloaded
from telemetry.metrics import Metrics

Attempt = Callable[[], bool]
"""Takes everything a request needs, notes it where the request's clean-up finds it, and returns True; or takes nothing and
returns False. Must not block. May raise: the request cannot ever be served."""


class AdmissionLine:
    """A FIFO of attempts. Lives on the event loop."""

    def __init__(self, max_waiting: int, metrics: Metrics) -> None:
        self._max_waiting = max_waiting
        self._length = metrics.requests_waiting_for_blocks.of()
        self._waiting: deque[tuple[Attempt, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def enter(self, attempt: Attempt) -> None:
        """Returns once `attempt` succeeded. Raises Overloaded when the line is full, and what `attempt` raises.

        A caller that is cancelled leaves the line; had its attempt succeeded in that same tick, its clean-up finds what it took.
        """
        if not self._waiting and attempt():
            return
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests wait for KV blocks already")
        place = (attempt, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self._length.set(len(self))
        try:
            await place[1]
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
                self.advance()  # who stood behind may fit

    def advance(self) -> None:
        """Lets those in front try; call whenever something was given back."""
        while self._waiting and self._let_try(*self._waiting[0]):
            self._waiting.popleft()
        self._length.set(len(self))

    @staticmethod
    def _let_try(attempt: Attempt, granted: asyncio.Future[None]) -> bool:
        """Whether this one's wait is over."""
        if granted.done():
            return True
        try:
            if not attempt():
                return False
            granted.set_result(None)
        except Exception as error:
            granted.set_exception(error)
        return True
