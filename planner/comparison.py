"""Pools that scale beside the best split that stays: the same trace through both."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.scaling_config import ScalingConfig
from planner.simulated_pools import Speed
from planner.simulation import Outcome, simulate
from planner.trace import Arrival


@dataclass(frozen=True)
class Run:
    """One simulation's figures."""

    prefill: int
    decode: int
    """Replicas, at the beginning where they scale."""
    attainment: float
    """Share of requests that kept both SLOs."""
    gpu_hours: float


@dataclass(frozen=True)
class Comparison:
    """`fixed`: the cheapest split that stays and keeps the SLO for as many requests as `scaled`; None where none within the limits
    does."""

    scaled: Run
    outcome: Outcome
    """Of the run that scales."""
    fixed: Run | None


def compare(arrivals: Sequence[Arrival], speed: Speed, config: ScalingConfig) -> Comparison:
    """Begins at the pools' least sizes. Runs the trace once per split that is tried, cheapest first."""
    outcome = simulate(arrivals, speed, config, config.prefill.min, config.decode.min, scale=True)
    scaled = _run(config, outcome, config.prefill.min, config.decode.min)
    fixed = (_run(config, simulate(arrivals, speed, config, *split, scale=False), *split) for split in _splits(config))
    best = next((run for run in fixed if run.attainment >= scaled.attainment), None)
    return Comparison(scaled, outcome, best)


def _run(config: ScalingConfig, outcome: Outcome, prefill: int, decode: int) -> Run:
    return Run(prefill, decode, outcome.attainment(config), outcome.gpu_hours(config))


def _splits(config: ScalingConfig) -> list[tuple[int, int]]:
    """All within the limits, by their price, and of equal ones the even first."""
    prefill, decode = config.prefill, config.decode
    splits = [(p, d) for p in range(prefill.min, prefill.max + 1) for d in range(decode.min, decode.max + 1)]
    return sorted(splits, key=lambda split: (split[0] * prefill.gpus + split[1] * decode.gpus, abs(split[0] - split[1])))
