"""Requests that are accepted and at no worker: in the fair queue while workers have no room, set aside while there is none.

Effects are timers, and calls of what it was given: `Places`, which send a request to workers, and `give_up`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from protocol.outcomes import Outcome
from router.accounting import Accounting
from router.config import RouterConfig
from router.pace import Pace
from router.request import End, Request
from router.shedding import LONGEST_RETRY_S, Prospect, ShedReason
from router.tenants.fair_queue import FairQueue, Share
from router.workers import Worker

logger = logging.getLogger(__name__)

GONE = "the worker that had this request is gone; a retry can help"
_NO_WORKER = "no decode worker is available; a retry can help"
_RETURNING = 1001
"""The class of requests whose client has a part of the answer already: above every class that can be configured."""


class Placed(Enum):
    """What came of an attempt to place a request."""

    YES = auto()
    NO_ROOM = auto()
    """Workers that can take it exist, and have enough to do."""
    NO_WORKER = auto()


class Places(Protocol):
    """Where those who wait can go."""

    def place(self, request: Request, kept: Set[Worker]) -> Placed:
        """Sends it to workers if it can, but not to a decode worker of `kept`."""

    @property
    def decode_workers(self) -> Sequence[Worker]:
        """All there are, whether they have room now or not."""


@dataclass
class _Wait:
    """One request's timers here."""

    queue_timeout: asyncio.TimerHandle | None
    worker_wait: asyncio.TimerHandle | None = None
    """While it is set aside."""


class WaitingLine:
    """Every wait in it has a deadline: `queue_timeout_s` for room, `worker_wait_s` for any worker at all. Who has been at a worker
    already has other ones: `worker_return_s`, and for room the request's own."""

    def __init__(
        self,
        config: RouterConfig,
        accounting: Accounting,
        places: Places,
        give_up: Callable[[Request, End], None],
    ) -> None:
        self._config = config
        self._accounting = accounting
        self._places = places
        self._give_up = give_up
        self._queue: FairQueue[Request] = FairQueue(config.priority_turns)
        self._set_aside: dict[Request, None] = {}
        self._waits: dict[Request, _Wait] = {}
        self._kept: set[Worker] = set()
        """Decode workers that somebody waits for whose turn has come. Nobody goes there before."""
        self._is_stuck = False
        """Nobody else can go, and nothing has changed since."""
        self._pace = Pace()
        self._told_wait_s = 0.0

    def __len__(self) -> int:
        return len(self._waits)

    def waiting(self) -> list[Request]:
        """Everybody here, in no order."""
        return list(self._waits)

    @property
    def retry_after_s(self) -> float:
        """When those who wait now will have been placed, at the pace of the last ones."""
        pace = self._pace.per_second(asyncio.get_running_loop().time())
        return min(LONGEST_RETRY_S, len(self) / pace if pace else self._config.queue_timeout_s)

    def prospect(self, share: Share, total_tokens: int) -> Prospect:
        """Of one more request of that share and length, prompt and longest answer. Nobody is before it where a worker takes it
        that nobody waits for."""
        waiting = len(self._queue)
        if not waiting or not self._kept or any(worker.takes(total_tokens, frozenset()) for worker in self._open_workers()):
            return Prospect(0, 0, None)
        now = asyncio.get_running_loop().time()
        pace = self._pace.per_second(now) if self._pace.is_known(now) else None
        return Prospect(waiting, self._queue.before(share), pace)

    def displaced_by(self, share: Share) -> Request | None:
        """Who would have to leave so that one more of this share can wait; None: nobody that has less right to."""
        return self._queue.displaced_by(share)

    def enter(self, request: Request, *, is_returning: bool = False) -> None:
        """Queues it; it moves with the next `pump`. Who returns from a lost worker has had its turn, and goes first."""
        timer = None
        if not is_returning:
            timer = asyncio.get_running_loop().call_later(self._config.queue_timeout_s, self._on_queue_timeout, request)
        self._waits[request] = _Wait(timer)
        self._push(request, is_returning)
        self._accounting.line_length(request, +1)

    def leave(self, request: Request) -> None:
        """It was placed, or has ended. Does nothing to one that is not here."""
        wait = self._waits.pop(request, None)
        if wait is None:
            return
        if wait.queue_timeout is not None:
            wait.queue_timeout.cancel()
        if wait.worker_wait is not None:
            wait.worker_wait.cancel()
        if self._queue.remove(request):
            self.note_room()  # if it was the next one, another is now
        self._set_aside.pop(request, None)
        self._accounting.line_length(request, -1)

    def note_room(self) -> None:
        """Something was taken off a worker, or a worker has reported: the next one may fit now."""
        self._kept.clear()
        self._is_stuck = False

    def pump(self) -> None:
        """Places whom it can, in turn. Costs nothing while there is no news.

        Who finds no room keeps all workers that could take it until there is news of room. So nobody gets past it to one of
        them, however little he needs; and who can go to another worker does not wait behind it.
        """
        if not self._is_stuck:
            self._place_all()
            self._time_wait()
        self._tell_wait()

    def _place_all(self) -> None:
        while (request := self._next()) is not None:
            try:
                placed = self._places.place(request, self._kept)
            except Exception:
                logger.exception("request %s", request.request_id)
                self._give_up(request, End(Outcome.INTERNAL, "the router failed to place the request"))
                continue
            if placed is Placed.NO_ROOM:
                self._kept.update(worker for worker in self._places.decode_workers if _takes(worker, request))
                continue
            if placed is Placed.NO_WORKER:
                self._put_aside(request)
                continue
            self._queue.take(request)
            self.leave(request)
            self._pace.taken(asyncio.get_running_loop().time())

    def _time_wait(self) -> None:
        """Places count while every worker is kept. While only some are, who waits for those says nothing of the places that
        others find at once."""
        if self._queue and not self._open_workers():
            self._pace.wait_begins(asyncio.get_running_loop().time())
        else:
            self._pace.wait_ends()

    def _next(self) -> Request | None:
        """Whose turn it is among those that could go to a worker nobody keeps."""
        request = None
        if not self._kept:
            request = self._queue.peek()
        elif open_workers := self._open_workers():
            request = self._queue.peek(lambda request: any(_takes(worker, request) for worker in open_workers))
        self._is_stuck = request is None
        return request

    def _open_workers(self) -> list[Worker]:
        """Mostly none when somebody waits: few requests are too long for some workers, or were given back by one."""
        return [worker for worker in self._places.decode_workers if worker not in self._kept and not worker.is_draining]

    def on_worker_joined(self) -> None:
        """Who was set aside may fit there. The pace of fewer workers says little now, nor do the places that it brings at once."""
        self._pace.forget()
        for request in list(self._set_aside):
            del self._set_aside[request]
            wait = self._waits[request]
            assert wait.worker_wait is not None
            wait.worker_wait.cancel()
            wait.worker_wait = None
            self._push(request, is_returning=request.attempts > 0)
        self.note_room()
        self.pump()

    def _push(self, request: Request, is_returning: bool) -> None:
        share = request.charge.tenant.share
        if is_returning:
            self._queue.push(request, replace(share, priority=_RETURNING), cost=0)
        else:
            self._queue.push(request, share, cost=request.charge.tokens)
        if self._is_stuck:  # it may go where those that wait already cannot
            self._is_stuck = bool(self._kept) and not any(_takes(worker, request) for worker in self._open_workers())

    def _tell_wait(self) -> None:
        """What the last one has to expect. Costs nothing while nobody waits."""
        if not self._queue and not self._told_wait_s:
            return
        waiting = len(self._queue)
        pace = self._pace.per_second(asyncio.get_running_loop().time()) if waiting else None
        self._told_wait_s = waiting / pace if pace else 0.0
        self._accounting.predicted_wait(self._told_wait_s)

    def _put_aside(self, request: Request) -> None:
        self._queue.remove(request)
        self._set_aside[request] = None
        wait_s = self._config.worker_return_s if request.attempts else self._config.worker_wait_s
        timer = asyncio.get_running_loop().call_later(wait_s, self._on_worker_wait_over, request)
        self._waits[request].worker_wait = timer

    def _on_worker_wait_over(self, request: Request) -> None:
        self._give_up(request, End(Outcome.UNAVAILABLE, GONE if request.attempts else _NO_WORKER))
        self.pump()

    def _on_queue_timeout(self, request: Request) -> None:
        message = f"no worker had room within {self._config.queue_timeout_s:g} s (queue_timeout_s); a retry can help"
        self._accounting.shed(ShedReason.QUEUE_TIMEOUT, request.charge.tenant.name)
        self._give_up(request, End(Outcome.OVERLOADED, message, retry_after_s=self.retry_after_s))
        self.pump()


def _takes(worker: Worker, request: Request) -> bool:
    return worker.takes(request.total_tokens, request.avoided)
