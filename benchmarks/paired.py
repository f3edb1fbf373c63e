"""Two ways of doing the same thing, measured in turns. Pure, but for what it says about the machine."""

import os
import platform
from collections.abc import Iterator, Sequence

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
    ratio: float
    """Ours / theirs: the median over the rounds."""
    smallest_ratio: float
    largest_ratio: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Paired":
        """Raises ValueError when the rounds do not match, or there are none."""
        ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
        return cls(
            ours=list(ours),
            theirs=list(theirs),
            our_median=median(ours),
            their_median=median(theirs),
            ratio=median(ratios),
            smallest_ratio=min(ratios),
            largest_ratio=max(ratios),
        )


def turns(rounds: int) -> Iterator[tuple[int, bool]]:
    """(round, whether it is our turn), in the order ours theirs, theirs ours, ours theirs: a steady drift favours neither."""
    for number in range(rounds):
        ours_first = number % 2 == 0
        yield number, ours_first
        yield number, not ours_first


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
