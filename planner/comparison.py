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
    missed: int
    """Requests that did not keep both SLOs."""
    attainment: float
    """Share of those that did."""
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
    scaled = run_of(config, outcome, (config.prefill.min, config.decode.min))
    fixed = (run_of(config, simulate(arrivals, speed, config, *split, scale=False), split) for split in splits(config))
    best = next((run for run in fixed if run.attainment >= scaled.attainment), None)
    return Comparison(scaled, outcome, best)


def run_of(config: ScalingConfig, outcome: Outcome, split: tuple[int, int]) -> Run:
    return Run(*split, outcome.missed(config), outcome.attainment(config), outcome.gpu_hours(config))


def splits(config: ScalingConfig) -> list[tuple[int, int]]:
    """All within the limits, by their price, and of equal ones the even first."""
    prefill, decode = config.prefill, config.decode
    splits = [(p, d) for p in range(prefill.min, prefill.max + 1) for d in range(decode.min, decode.max + 1)]
    return sorted(splits, key=lambda split: (split[0] * prefill.gpus + split[1] * decode.gpus, abs(split[0] - split[1])))
