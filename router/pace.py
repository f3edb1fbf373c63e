"""How fast places come free for those who wait: what the router predicts waits from. Pure: who asks says what time it is."""

_REMEMBERED = 32
"""About so many places shape the pace. A worker that joins and takes 16 at once makes it look 1.7 times as fast, until as many
others have come."""
_FEWEST = 8
"""Fewer say little: the first ones come when what happens to run happens to end."""


class Pace:
    """Places per second of the time in which somebody waited for one. Idle time says nothing of what the workers could have
    done."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._keep = 1 - 1 / remembered
        self._places = 0.0
        self._seconds = 0.0
        self._seen = 0
        self._since: float | None = None
        """When the last place was taken, or somebody began to wait; None while nobody does."""

    def wait_begins(self, now: float) -> None:
        """Somebody has to wait. Does nothing while somebody did already."""
        if self._since is None:
            self._since = now

    def wait_ends(self) -> None:
        """Nobody waits any more."""
        self._since = None

    def taken(self, now: float) -> None:
        """A place was taken. It counts if somebody had to wait for it."""
        if self._since is None:
            return
        self._places = self._places * self._keep + 1
        self._seconds = self._seconds * self._keep + now - self._since
        self._seen += 1
        self._since = now

    @property
    def is_known(self) -> bool:
        """Enough places have come to refuse somebody by it."""
        return self._seen >= _FEWEST

    def per_second(self, now: float) -> float | None:
        """None while nothing was measured. A place that does not come makes it slower by the moment."""
        if not self._seen:
            return None
        seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
        return self._places / seconds if seconds > 0 else None
