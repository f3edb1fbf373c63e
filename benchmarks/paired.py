"""Two ways of doing the same thing, measured in turns. Pure, but for what it says about the machine."""

import os
import platform
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks.quantiles import median

BUSY_LOAD = 0.5


class Paired(BaseModel):
    """One quantity, measured once per round on either side. The two of a round lie next to each other in time, so what the
    machine does meanwhile (clock, neighbours) touches both: their ratio is to be trusted, the medians less."""

    model_config = ConfigDict(frozen=True)

    ours: list[float]
    theirs: list[float]
    our_median: float
    their_median: float
    ratio: float | None
    """Ours / theirs: the median over the rounds. None where theirs is nothing, in every round."""
    smallest_ratio: float | None
    largest_ratio: float | None

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Paired":
        """Raises ValueError when the rounds do not match, or there are none."""
        ratios = [our / their for our, their in zip(ours, theirs, strict=True) if their > 0]
        return cls(
            ours=list(ours),
            theirs=list(theirs),
            our_median=median(ours),
            their_median=median(theirs),
            ratio=median(ratios) if ratios else None,
            smallest_ratio=min(ratios, default=None),
            largest_ratio=max(ratios, default=None),
        )


def order(round_number: int) -> tuple[bool, bool]:
    """Whose turn it is in a round, True for ours: ours theirs, theirs ours, ours theirs: a steady drift favours neither."""
    ours_first = round_number % 2 == 0
    return ours_first, not ours_first


class Verdict(BaseModel):
    """A target, and what was measured."""

    model_config = ConfigDict(frozen=True)

    what: str
    measured: float | None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """False also where nothing was measured."""
        if self.measured is None:
            return False
        return (self.at_most is None or self.measured <= self.at_most) and (
            self.at_least is None or self.measured >= self.at_least
        )

    def __str__(self) -> str:
        wanted = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {measured} (target: {wanted})"


class Machine(BaseModel):
    """Where and under what load it was measured."""

    model_config = ConfigDict(frozen=True)

    processor: str
    cores: int
    load: float
    """Runnable processes in the minute before the start."""
    python: str
    system: str

    @classmethod
    def here(cls) -> "Machine":
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            load=os.getloadavg()[0],
            python=platform.python_version(),
            system=platform.platform(),
        )

    def warning(self) -> str | None:
        if self.load < BUSY_LOAD:
            return None
        return f"the machine is busy (load {self.load:.1f}): trust these ratios little, these figures not at all"


def _processor() -> str:
    """The model's name; Linux keeps it in /proc/cpuinfo (proc(5))."""
    try:
        with open("/proc/cpuinfo") as stream:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
