"""Percentiles, of samples and of Prometheus histograms. Pure."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict


def percentile(samples: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile (0 to 100), linear between the two nearest samples (numpy's default). Raises ValueError
    when there are none."""
    if not samples:
        raise ValueError("no samples")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must lie in 0 to 100, not {percent}")
    ordered = sorted(samples)
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def median(samples: Sequence[float]) -> float:
    return percentile(samples, 50)


class Spread(BaseModel):
    """How one quantity was distributed; in the unit of its samples."""

    model_config = ConfigDict(frozen=True)

    samples: int
    mean: float
    p50: float
    p90: float
    p99: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread | None":
        """None when there are no samples."""
        if not samples:
            return None
        return cls(
            samples=len(samples),
            mean=sum(samples) / len(samples),
            p50=percentile(samples, 50),
            p90=percentile(samples, 90),
            p99=percentile(samples, 99),
            smallest=min(samples),
            largest=max(samples),
        )


def histogram_percentile(cumulative: Mapping[float, float], percent: float) -> float | None:
    """An estimate from cumulative bucket counts (upper bound → count), as Prometheus' histogram_quantile: linear inside the
    bucket, and the last finite bound when the rank lies beyond it. None when the histogram is empty."""
    bounds = sorted(cumulative)
    total = cumulative[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = total * percent / 100
    lower, below = 0.0, 0.0
    for bound in bounds:
        count = cumulative[bound]
        if count >= rank and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
