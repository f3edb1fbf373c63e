"""Requests that lost their worker, on their way back into the router's line: at once, after a pause, or apart from others."""

import asyncio

from router.accounting import Accounting
from router.losses import Trials, pause_s
from router.request import Request
from router.waiting_line import WaitingLine

MOVED = "moved"
"""A worker that stops has handed it back: no failure, and not counted as a retry. It will not be sent there again, so this too is
bounded, by the number of workers."""


class Returns:
    """Every wait here is ended by the request's deadline: `leave` must be called at its end."""

    def __init__(self, line: WaitingLine, accounting: Accounting) -> None:
        self._line = line
        self._accounting = accounting
        self._trials: Trials[Request] = Trials(self._try_apart)

    def enter(self, request: Request, why: str, *, is_apart: bool = False) -> None:
        """`why`: the metric's label. It moves with the line's next `pump`, or when its wait is over."""
        self._accounting.retried(why)
        pause = 0.0
        if why == MOVED:
            assert request.decode is not None
            request.avoided.add(request.decode.incarnation)
        else:
            request.retries += 1
            pause = pause_s(request.retries, request.timeline.deadline - asyncio.get_running_loop().time())
        if is_apart:
            self._trials.enter(request)
        elif pause:
            request.timers.append(asyncio.get_running_loop().call_later(pause, self._return, request))
        else:
            self._line.enter(request, is_returning=True)

    def on_token(self, request: Request) -> None:
        """Nothing speaks against it any more."""
        request.suspicion.clear()
        self._trials.leave(request)

    def leave(self, request: Request) -> None:
        """It has ended; its timers are the caller's. Does nothing to one that is not here."""
        self._trials.leave(request)

    def _try_apart(self, request: Request) -> None:
        request.suspicion.is_apart = True
        self._return(request)

    def _return(self, request: Request) -> None:
        self._line.enter(request, is_returning=True)
        self._line.pump()
