"""The scaling decision: from what both pools did in the last period to how many replicas each shall have."""

from dataclasses import dataclass, replace

from planner.pool_scaling import PoolDecision, PoolMemory, PoolSignal, Reason, decide_pool
from planner.scaling_config import PoolLimits, ScalingConfig

SPLIT_TOLERANCE = 0.85
"""With too few GPUs for both pools, a split stays as long as its worse pool has this share of what the best one would give it."""


@dataclass(frozen=True)
class Signals:
    """What both pools did in the last period."""

    prefill: PoolSignal
    decode: PoolSignal


@dataclass(frozen=True)
class ScalingMemory:
    """What the next decision must be given back. Small, plain values: it may travel or be stored."""

    prefill: PoolMemory
    decode: PoolMemory


@dataclass(frozen=True)
class Decision:
    """Desired and actual replicas of both pools, and why."""

    prefill: PoolDecision
    decode: PoolDecision

    @property
    def memory(self) -> ScalingMemory:
        return ScalingMemory(self.prefill.memory, self.decode.memory)


def start(config: ScalingConfig, prefill: int, decode: int) -> ScalingMemory:
    """The memory of a cluster that begins with so many replicas."""
    return ScalingMemory(PoolMemory(config.prefill.clamp(prefill)), PoolMemory(config.decode.clamp(decode)))


def decide(config: ScalingConfig, memory: ScalingMemory, signals: Signals) -> Decision:
    """Pure. Whatever the signals, each pool stays within its limits, and both within `max_gpus`."""
    prefill = decide_pool(config, config.prefill, memory.prefill, signals.prefill)
    decode = decide_pool(config, config.decode, memory.decode, signals.decode)
    split = prefill.desired, decode.desired
    if config.max_gpus is None or _gpus(config, split) <= config.max_gpus:
        return Decision(prefill, decode)
    fitting = _share(config, (prefill.need, decode.need), (memory.prefill.desired, memory.decode.desired), split)
    return Decision(_limited(prefill, fitting[0]), _limited(decode, fitting[1]))


Split = tuple[int, int]


def _share(config: ScalingConfig, needs: tuple[float, float], current: Split, wanted: Split) -> Split:
    """The split within `max_gpus` whose worse pool has the most of what it needs; the current one where that is about as good."""
    assert config.max_gpus is not None, "asked only where there is a budget"
    splits = []
    for prefill in range(config.prefill.min, wanted[0] + 1):
        room = (config.max_gpus - prefill * config.prefill.gpus) // config.decode.gpus
        if room >= config.decode.min:
            splits.append((prefill, min(room, wanted[1])))
    best = max(splits, key=lambda split: (_worse(split, needs), -abs(split[0] - current[0])))
    if _gpus(config, current) <= config.max_gpus and _worse(current, needs) >= SPLIT_TOLERANCE * _worse(best, needs):
        return current
    return best


def _worse(split: Split, needs: tuple[float, float]) -> float:
    return min(replicas / max(need, 1e-9) for replicas, need in zip(split, needs, strict=True))


def _gpus(config: ScalingConfig, split: Split) -> int:
    pools: tuple[PoolLimits, PoolLimits] = (config.prefill, config.decode)
    return sum(pool.gpus * replicas for pool, replicas in zip(pools, split, strict=True))


def _limited(decision: PoolDecision, desired: int) -> PoolDecision:
    if desired == decision.desired:
        return decision
    return replace(decision, desired=desired, reason=Reason.LIMIT, memory=replace(decision.memory, desired=desired, calm=0))
