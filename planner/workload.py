"""What a cluster is asked for, as a few figures: all that a capacity plan needs of a trace."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.model_shape import ModelShape
from planner.trace import Arrival
from protocol.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """Lengths are tokens of the requests of the whole trace; `rate` is of its busiest period, for which a plan must be enough."""

    rate: float
    """Requests per second."""
    mean_rate: float
    """Over all of the trace: what is paid for is shared among these."""
    isl: float
    osl: float
    long_isl: float
    """95% of prompts are no longer."""
    context: float
    """Tokens before the next one, as a decode worker finds it on average: long answers are there for longer."""
    isl_variation: float
    """Variance of a prompt's length over its squared mean."""

    @classmethod
    def constant(cls, isl: float, osl: float, rate: float) -> "Workload":
        """Requests that are all alike and come at random."""
        return cls(rate, rate, isl, osl, isl, isl + osl / 2, 0.0)

    @classmethod
    def of_trace(cls, arrivals: Sequence[Arrival], period_s: float) -> "Workload":
        """`arrivals` in order, at least two; the busiest of consecutive periods of `period_s` gives the rate."""
        count, duration = len(arrivals), max(arrivals[-1].time_s - arrivals[0].time_s, 1e-9)
        isl, osl = (sum(lengths) / count for lengths in zip(*((one.isl, one.osl) for one in arrivals), strict=True))
        held = sum(one.osl * (one.isl + one.osl / 2) for one in arrivals)
        mean_rate = count / duration
        return cls(
            rate=max(mean_rate, _busiest(arrivals, period_s)) if duration > period_s else mean_rate,
            mean_rate=mean_rate,
            isl=isl,
            osl=osl,
            long_isl=sorted(one.isl for one in arrivals)[int(0.95 * (count - 1))],
            context=held / (osl * count),
            isl_variation=sum((one.isl - isl) ** 2 for one in arrivals) / count / isl**2,
        )


def _busiest(arrivals: Sequence[Arrival], period_s: float) -> float:
    counts: dict[int, int] = {}
    for one in arrivals:
        period = int((one.time_s - arrivals[0].time_s) // period_s)
        counts[period] = counts.get(period, 0) + 1
    return max(counts.values()) / period_s


def require_context(model: ModelShape, lengths: Sequence[int]) -> None:
    """`lengths`: tokens of each request's prompt and answer. Raises ConfigError where one is more than the model can hold: no
    worker would take it, however many there are."""
    too_long = [length for length in lengths if length > model.max_context]
    if too_long:
        raise ConfigError(
            f"model: {model.name} holds {model.max_context:,} tokens of a prompt and its answer, and {len(too_long):,} of "
            f"{len(lengths):,} requests have more, up to {max(too_long):,}"
        )
