"""Whether more replicas help where an SLO is missed that the load does not explain: a pool finds out by growing a little.

Some misses have nothing to do with the pool's size: a prompt that by itself takes longer than the SLO allows, a GPU that is too
slow for it. A pool that went on growing would fill the cluster for nothing.
"""

from dataclasses import dataclass, replace

STEP = 1.5
"""So many times lower a pool's use must be before it is judged, and need not be before that: latency grows faster than load does
near the limit, so what depends on the load at all must have become better."""
HELPED = 0.2
"""Share of the way to the SLO that a miss must have come, to go on. A latency in proportion to use comes a third or more."""
NOTICED = 0.05
"""And by so much of what is wanted, or it is noise."""
SAME_LOAD = 1.5
"""A need of less than so many times another is the same load with its noise, not a swing. So is an error."""
ROUNDING = 1e-6
"""What a sum of floating-point numbers may be off by."""
MISSES = 3
"""Periods in a row that a miss which the load does not explain must last: after a burst the last that waited are still told of when
the queue is gone. Also how long an SLO must be kept for the miss to be over."""


@dataclass(frozen=True)
class Trial:
    """How it was when a pool began to grow for an SLO, or when that last turned out to help."""

    use: float
    """Load of each replica."""
    error: float
    """Measured over wanted, above 1."""
    kept: int = 0
    """Periods in a row in which the SLO was kept since."""
    age: int = 0

    @property
    def least_use(self) -> float:
        """No use below it is aimed at before it is known whether that helps."""
        return self.use / STEP

    def older(self, error: float | None, most: int) -> "Trial | None":
        """After one more period; None when the miss is over, or it is too old (`most` periods) to be compared with."""
        kept = self.kept if error is None else self.kept + 1 if error <= 1 else 0
        return replace(self, kept=kept, age=self.age + 1) if kept < MISSES and self.age < most else None

    def goes_on(self, use: float, error: float) -> bool:
        """Otherwise a new one begins: this one has helped, or the load is another."""
        has_helped = self.error - error >= max(NOTICED, HELPED * (self.error - 1))
        return use < SAME_LOAD * self.use and not has_helped

    def is_in_vain(self, use: float, error: float) -> bool:
        return self.goes_on(use, error) and use <= self.least_use * (1 + ROUNDING)


@dataclass(frozen=True)
class Vain:
    """A trial that has not helped: as long as nothing changes, that SLO says nothing about the pool's size."""

    load: float
    error: float
    age: int = 0
    changed: int = 0
    """Periods in a row that were unlike those of the trial."""

    def older(self, load: float, error: float | None, most: int) -> "Vain | None":
        """After one more period; None when it is too old (`most` periods), or conditions are others by now."""
        is_other = _are_far(max(1.0, load), max(1.0, self.load)) or (error is not None and _are_far(error, self.error))
        changed = self.changed + 1 if is_other else 0
        return replace(self, age=self.age + 1, changed=changed) if self.age < most and changed < MISSES else None


def _are_far(one: float, other: float) -> bool:
    smaller, larger = sorted((one, other))
    return larger >= SAME_LOAD * smaller
