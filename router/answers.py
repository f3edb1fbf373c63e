"""The answers of one client call: several requests that are read, and fail, as one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from router.request import Delta, Request
from router.turns import News, Turns

SETTLE_S = 0.5
"""How long a reply waits for a worker to say what an answer took that the router ended at a stop string: many engine steps."""


class Piece(NamedTuple):
    """What has come for one answer since its last piece. `is_last`: it is whole, and this is its last."""

    choice: int
    delta: Delta
    is_last: bool


class Answers:
    """Reads the requests of one call, in the order of its choices. Whoever makes one abandons the requests at the end, whatever
    happens. Event loop only."""

    def __init__(self, requests: Sequence[Request], turns: Turns | None = None) -> None:
        """`turns`: the line that its reader stands in with others; without one it never waits for them."""
        self.requests = tuple(requests)
        self._news = News(turns or Turns())
        for request in self.requests:
            request.tell(self._news)

    @property
    def failed(self) -> Request | None:
        """A request that ended without success: the whole call then has failed."""
        return next((each for each in self.requests if each.end is not None and not each.end.outcome.is_success), None)

    async def wait_started(self) -> None:
        """Returns when any request has a first token or an end: only then is it known how the reply begins."""
        await self._news.wait()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Everything that comes, gathered while the caller was busy. Ends after the last answer's end, or the first failure
        (see `failed`), whose own last tokens still come."""
        unfinished = dict(enumerate(self.requests))
        has_failed = False
        while unfinished and not has_failed:
            await self._news.wait()
            self._news.clear()
            pieces = []
            for choice, request in list(unfinished.items()):
                end, delta = request.end, request.take()
                has_succeeded = end is not None and end.outcome.is_success
                if end is not None:
                    del unfinished[choice]
                    has_failed = has_failed or not has_succeeded
                if delta or has_succeeded:
                    pieces.append(Piece(choice, delta, has_succeeded))
            if pieces:
                yield pieces

    async def wait_settled(self) -> None:
        """Returns when the figures of all requests that have ended are whole. A worker that has not answered by then is not waited
        for: its part is missing."""
        if not any(request.owes_figures for request in self.requests):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while any(request.owes_figures for request in self.requests):
                    await self._news.wait()
                    self._news.clear()
        # What has come for others meanwhile is still to be read.
        self._news.set()

    async def whole(self) -> list[Delta]:
        """Each answer in one delta, in the order of the choices; cut short where the call has failed."""
        gathered: list[list[Delta]] = [[] for _ in self.requests]
        async for pieces in self.pieces():
            for piece in pieces:
                gathered[piece.choice].append(piece.delta)
        return [_join(deltas) for deltas in gathered]


def _join(deltas: Sequence[Delta]) -> Delta:
    whole = Delta()
    for delta in deltas:
        whole.token_ids += delta.token_ids
        whole.logprobs += delta.logprobs
    whole.text = "".join(delta.text for delta in deltas)
    return whole
