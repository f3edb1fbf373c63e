"""What changed in a prefix cache since somebody looked last, so that routers can know where prompts would find their beginning.

The feed keeps the last state of each block hash, not a history: telling it twice, or beside a full set that has it already,
changes nothing. So one feed serves any number of listeners, each of which begins with a full set at a time of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

MAX_GATHERED = 16_384
"""Block hashes gathered at most between two looks (half a megabyte); beyond it the full set is told anew."""


@dataclass(frozen=True)
class Changes:
    """Block hashes that can be found now and could not before, and the other way round. `overflowed`: too many to gather;
    only the full set tells what there is."""

    stored: list[bytes]
    evicted: list[bytes]
    overflowed: bool = False


class CacheFeed:
    """Written under the cache's lock, once per block made findable or evicted: one dict write. `on_change` is called, still
    under that lock, when the first change since the last `take` is noted; it must not block nor ask the cache."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._is_stored: dict[bytes, bool] = {}
        self._overflowed = False

    def note(self, block_hash: bytes, *, stored: bool) -> None:
        if self._overflowed:
            return
        is_first = not self._is_stored
        self._is_stored[block_hash] = stored
        if len(self._is_stored) > MAX_GATHERED:
            self._overflowed = True
            self._is_stored.clear()
        elif is_first:
            self._on_change()

    def take(self) -> tuple[dict[bytes, bool], bool]:
        """Everything gathered, which is then forgotten: the last state of each hash, and whether it is too much to tell."""
        taken = self._is_stored, self._overflowed
        self._is_stored, self._overflowed = {}, False
        return taken
