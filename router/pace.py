"""How fast places come free for those who wait: what the router predicts waits from. Pure: who asks says what time it is."""

_REMEMBERED = 32
"""About so many places shape the pace. 16 that come free at once make it look 1.7 times as fast, until as many others have come."""
_FEWEST = 8
"""Fewer say little: the first ones come when what happens to run happens to end."""
_OLD_S = 60.0
"""What was measured before so long a pause was another workload."""


class Pace:
    """Places per second of the time in which whoever came had to wait for one. Other time says nothing of what the workers could
    have done."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._keep = 1 - 1 / remembered
        self.forget()

    def forget(self) -> None:
        """The workers are not those that were measured. Stops the clock too: the next places count once the wait begins again."""
        self._places = 0.0
        self._seconds = 0.0
        self._seen = 0
        self._last = 0.0
        """When the last place was counted."""
        self._since: float | None = None
        """When the last place was counted, or the wait began; None while there is none."""

    def wait_begins(self, now: float) -> None:
        """Whoever comes has to wait. Does nothing while that was so already."""
        if self._is_old(now):
            self.forget()
        if self._since is None:
            self._since = now

    def wait_ends(self) -> None:
        """Who comes now may find a place."""
        self._since = None

    def taken(self, now: float) -> None:
        """A place was taken. It counts if whoever came before it had to wait."""
        if self._since is None:
            return
        self._places = self._places * self._keep + 1
        self._seconds = self._seconds * self._keep + now - self._since
        self._seen += 1
        self._since = self._last = now

    def is_known(self, now: float) -> bool:
        """Enough places have come, and lately, to refuse somebody by it."""
        return self._seen >= _FEWEST and not self._is_old(now)

    def per_second(self, now: float) -> float | None:
        """None while nothing was measured lately. A place that does not come makes it slower by the moment."""
        if not self._seen or self._is_old(now):
            return None
        seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
        return self._places / seconds if seconds > 0 else None

    def _is_old(self, now: float) -> bool:
        """Not while there is a wait: then a place that does not come is news."""
        return self._since is None and now - self._last > _OLD_S
