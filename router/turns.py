"""Adaptive coalescing: who writes to its client next, and how many do before workers are read again.

Writing an event costs ten times what reading a token does. So in one round of the event loop only some writers go on; the others
wait in line, and what comes for them meanwhile goes out in the same event. A message from a worker takes several rounds, in which
gRPC's thread needs the interpreter lock: so a few rounds without a writer follow. On a loop that keeps up they take microseconds,
the line is soon gone and every token goes out at once; there is no timer anywhere.
"""

import asyncio
from collections import deque

FEWEST_PER_ROUND = 2
ROUNDS = 16
"""Of a long line, so many rounds serve about all: nobody waits longer for others, however many there are."""
ROUNDS_TO_READ = 20
"""After a round with writers, so many without. Measured with 32 flooded streams on two cores: 56 to 64 us and 2 tokens per event
without them; 25 to 34 us and 20 to 28 tokens per event in three runs of five with them, 66 to 68 us and 5 to 8 in two."""


class Turns:
    """The line of all writers of one event loop. A writer with its first news goes before those that have begun."""

    def __init__(self) -> None:
        self._left = FEWEST_PER_ROUND
        self._first: deque[News] = deque()
        self._begun: deque[News] = deque()
        self._has_next_round = False
        self._to_read = 0

    def ask(self, news: "News") -> None:
        """Wakes the reader of `news` now, or when it is its turn."""
        if self._left:
            self._left -= 1
            news.wake()
        else:
            (self._first if news.is_first else self._begun).append(news)
        if not self._has_next_round:
            self._has_next_round = True
            asyncio.get_running_loop().call_soon(self._next_round)

    def _next_round(self) -> None:
        if self._to_read:
            self._to_read -= 1
            asyncio.get_running_loop().call_soon(self._next_round)
            return
        in_line = len(self._first) + len(self._begun)
        allowed = max(FEWEST_PER_ROUND, in_line // ROUNDS)
        woken = min(allowed, in_line)
        for _ in range(woken):
            (self._first or self._begun).popleft().wake()
        self._left = allowed - woken
        self._has_next_round = woken > 0
        self._to_read = ROUNDS_TO_READ if woken else 0
        if woken:
            asyncio.get_running_loop().call_soon(self._next_round)


class News:
    """An asyncio.Event for one waiter, which is woken in its turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None
        self._is_in_line = False
        self.is_first = True
        """The waiter has not been woken yet."""

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._is_in_line and not self._waiter.done():
            self._is_in_line = True
            self._turns.ask(self)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        """Returns when it is set, in turn; at once where it was before."""
        if self._is_set:
            return
        assert self._waiter is None, "one waiter only"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """It is the waiter's turn."""
        self._is_in_line = self.is_first = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
