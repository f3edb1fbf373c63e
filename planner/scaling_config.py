"""How pools may be scaled: limits, the SLO that they shall keep, and how much proof a smaller pool needs."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PoolLimits(BaseModel):
    """Of one pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: int = Field(1, ge=1, description="Replicas that are always there.")
    max: int = Field(8, ge=1, description="Replicas that are never exceeded, whatever the load.")
    gpus: int = Field(1, ge=1, description="GPUs of one replica, by which `max_gpus` is shared between the pools.")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self

    def clamp(self, replicas: int) -> int:
        return min(self.max, max(self.min, replicas))


class ScalingConfig(BaseModel):
    """Settings of the scaling decision, which is taken for both pools together once per period."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill: PoolLimits = PoolLimits()
    decode: PoolLimits = PoolLimits()
    max_gpus: int | None = Field(
        None,
        ge=2,
        description="GPUs of both pools together. When they are too few, the pools get them in proportion to their need.",
    )
    period_s: float = Field(
        15.0,
        gt=0,
        description="Seconds between two decisions: long enough for a p95, short beside the minutes that a load takes to swing.",
    )
    slo_ttft_s: float = Field(2.0, gt=0, description="Seconds to the first token that 95% of requests shall keep.")
    slo_tokens_per_s: float = Field(20.0, gt=0, description="Tokens per second that 95% of answers shall reach.")
    target_use: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Share of a pool (of prefill's time, of decode's KV blocks) that the load shall take. At 0.7 a queue is still "
        "short, and a swing of 40% fits in while replicas start.",
    )
    down_margin: float = Field(
        0.15,
        ge=0,
        description="A smaller pool must be enough for the load and this share more, so that noise does not bring it back at once.",
    )
    drain_periods: int = Field(
        2,
        ge=1,
        description="Periods in which a queue shall be worked off. At 2 the second decision after a swing sees its whole size: "
        "what has gathered in two periods, over two.",
    )
    calm_periods: int = Field(
        2, ge=1, description="Decisions in a row that must find a smaller pool enough before it is made smaller."
    )
    memory_periods: int = Field(
        240,
        ge=1,
        description="A pool that must grow within so many periods after it shrank, under about the same load, had been made too "
        "small: it must then be calm for twice as long before it shrinks again. Also how long is remembered at which use an SLO "
        "was missed, or that a larger pool did not help.",
    )
    pending_periods: int = Field(
        20,
        ge=1,
        description="Periods that replicas are waited for. A pool that has not come by then is judged by the load alone, so that a "
        "scale-up which nobody can serve does not stick.",
    )

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        least = self.prefill.min * self.prefill.gpus + self.decode.min * self.decode.gpus
        if self.max_gpus is not None and self.max_gpus < least:
            raise ValueError(f"max_gpus {self.max_gpus} is below what the pools' min take, {least}")
        return self
