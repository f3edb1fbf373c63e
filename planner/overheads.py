"""What rooflines leave out (launches, imbalance of experts, stragglers, scheduling), as measured in public, and the model's error.

One factor per phase, because that is all that the published points bear: each more parameter would be fitted to one point.
"""

from dataclasses import dataclass
from math import exp, log

from planner.published import DECODE_POINTS, PREFILL_POINTS, DecodePoint, PrefillPoint


@dataclass(frozen=True)
class Overheads:
    """Measured time over the roofline's."""

    decode: float
    prefill: float


@dataclass(frozen=True)
class Residual:
    """One published point, and what the model with its overheads says of it."""

    name: str
    fitted: bool
    """Whether the factor was made of this point; the others are predictions."""
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative; above 0 the model is too optimistic."""
        return self.predicted / self.published - 1


def measured_overheads() -> Overheads:
    """The geometric mean of the ratios at the fitted points."""
    return Overheads(
        decode=_geometric_mean([point.step_s / point.roofline_s for point in DECODE_POINTS if point.fitted]),
        prefill=_geometric_mean([point.token_gpu_s / point.roofline_s for point in PREFILL_POINTS if point.fitted]),
    )


def residuals(overheads: Overheads) -> list[Residual]:
    """Every published point against the model: tokens per second and user for decode, per GPU for prefill."""
    return [
        *(_of_decode(point, overheads) for point in DECODE_POINTS),
        *(_of_prefill(point, overheads) for point in PREFILL_POINTS),
    ]


def _of_decode(point: DecodePoint, overheads: Overheads) -> Residual:
    predicted = point.tokens_per_step / (point.roofline_s * overheads.decode)
    return Residual(f"decode: {point.name}", point.fitted, point.user_tokens_per_s, predicted)


def _of_prefill(point: PrefillPoint, overheads: Overheads) -> Residual:
    predicted = 1 / (point.roofline_s * overheads.prefill)
    return Residual(f"prefill: {point.name}", point.fitted, 1 / point.token_gpu_s, predicted)


def _geometric_mean(ratios: list[float]) -> float:
    return exp(sum(map(log, ratios)) / len(ratios))
