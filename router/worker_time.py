"""How long workers were there, busy or idle: what their owner pays for."""

import time
from collections.abc import Callable, Mapping


class WorkerTime:
    """Seconds of all workers of a pool together. Told by one thread, may be read by any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pools: dict[str, tuple[int, float, float]] = {}
        """Workers now, since when, and the seconds before."""

    def count(self, pool: str, workers: int) -> None:
        """From now on `pool` has so many."""
        before = self.read().get(pool, 0.0)
        self._pools[pool] = (workers, self._clock(), before)

    def read(self) -> Mapping[str, float]:
        now = self._clock()
        return {pool: before + workers * (now - since) for pool, (workers, since, before) in list(self._pools.items())}
