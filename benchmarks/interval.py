"""What a ratio that was measured in many short turns is worth. Pure."""

import math
from random import Random

from pydantic import BaseModel, ConfigDict

from benchmarks.paired import Paired
from benchmarks.quantiles import median, percentile

FEWEST_PAIRS = 10
RESAMPLES = 2000


class Interval(BaseModel):
    """Ours / theirs as the median over the pairs, and where it lies with 95 % confidence: the middle 95 % of the medians of as many
    pairs drawn with replacement (the percentile bootstrap; Efron 1979), for pairs that do not depend on each other. Medians,
    because one pair in ten of a shared machine says nothing."""

    model_config = ConfigDict(frozen=True)

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, pairs: Paired) -> "Interval | None":
        """The same for the same pairs. None for fewer than FEWEST_PAIRS: too few to say."""
        logs = [math.log(ours / theirs) for ours, theirs in zip(pairs.ours, pairs.theirs, strict=True)]
        if len(logs) < FEWEST_PAIRS:
            return None
        random = Random(0)
        medians = [median(random.choices(logs, k=len(logs))) for _ in range(RESAMPLES)]
        return cls(
            ratio=math.exp(median(logs)), low=math.exp(percentile(medians, 2.5)), high=math.exp(percentile(medians, 97.5))
        )

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f}-{self.high:.3f})"
