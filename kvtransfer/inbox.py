"""What other threads want done by the thread that owns a transport."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from protocol.errors import ServalError, TransferFailed

log = logging.getLogger(__name__)


class Inbox:
    """In the order in which it came. `post` and `submit` from any thread, `run_all` by the owner; neither waits."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` ends the owner's pause."""
        self._acts: deque[Callable[[], None]] = deque()
        self._wake = wake

    def post(self, act: Callable[[], None]) -> None:
        """`act` must not raise."""
        self._acts.append(act)
        self._wake()

    def submit(self, act: Callable[[], None]) -> "Future[None]":
        """The future is done when `act` is, and raises what it raised: a ServalError, or TransferFailed for anything else."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                act()
            except ServalError as error:
                future.set_exception(error)
            except Exception as error:  # one caller's, whatever it is: the owner serves all
                log.exception("KV transport")
                future.set_exception(TransferFailed(f"unexpected {type(error).__name__}: {error}"))
            else:
                future.set_result(None)

        self.post(run)
        return future

    def run_all(self) -> None:
        while self._acts:
            self._acts.popleft()()
