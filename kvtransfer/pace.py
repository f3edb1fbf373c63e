"""How often a transport thread polls: often while something moves, less the longer nothing does."""

import time

from kvtransfer.config import TransferConfig

SLOWDOWN = 8
"""The next poll comes after an eighth of the time for which nothing has moved: at most that much is added to any wait."""


class Pace:
    """Used by one thread. A lease that is open for the length of a prefill must not cost a tenth of a core in polls."""

    def __init__(self, config: TransferConfig) -> None:
        self._shortest_s = config.active_poll_s
        self._longest_s = max(config.active_poll_s, config.waiting_poll_s)
        self._moved_s = time.monotonic()

    def progressed(self) -> None:
        self._moved_s = time.monotonic()

    def interval_s(self) -> float:
        return min(self._longest_s, max(self._shortest_s, (time.monotonic() - self._moved_s) / SLOWDOWN))
