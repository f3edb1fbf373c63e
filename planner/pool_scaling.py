"""The scaling decision of one pool: a pure function of what was measured and of the little that is remembered.

Growing needs no proof, shrinking does. What is remembered keeps a constant load from moving the pool to and fro: at which use an
SLO was missed (else the pool would shrink back to it), and whether a shrinking had to be taken back; and what keeps a pool from
growing for nothing: whether it has helped (planner/slo_trial.py).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from planner.scaling_config import PoolLimits, ScalingConfig
from planner.slo_trial import MISSES, ROUNDING, SAME_LOAD, STEP, Trial, Vain

LEAST_TARGET_USE = 0.1
"""However often an SLO was missed: then it is hardly for want of replicas."""
CALM_LIMIT = 16
"""Times `calm_periods`, at most, that a pool must be calm after reversals."""


class Reason(StrEnum):
    """Why a pool is asked to be as large as it is; a metric label."""

    STEADY = "steady"
    LOAD = "load"
    SLO = "slo"
    CALM = "calm"
    """It shrinks: a smaller pool has been enough for long."""
    IN_VAIN = "in_vain"
    """It has grown for an SLO, which did not help: what it has learned of that is forgotten, and from now on the load decides."""
    LIMIT = "limit"
    """`min`, `max` or `max_gpus` keep it from what it needs."""


@dataclass(frozen=True)
class PoolSignal:
    """What one pool did in the last period. Loads are in replicas: 1.5 is what one and a half replicas can do at their best."""

    ready: int
    """Replicas that take requests."""
    used: float
    """Load that was being worked on: the busy share of prefill's time, the held share of decode's KV blocks, times `ready`."""
    queued: float = 0.0
    """Load that waits: what one replica of prefill would need so many periods for, or so many of decode's would be filled by."""
    slo_error: float | None = None
    """Measured over wanted: above 1 the SLO is missed. TTFT for prefill, time per token for decode. None: nothing was measured."""


@dataclass(frozen=True)
class PoolMemory:
    """What a pool's next decision knows of those before."""

    desired: int
    calm: int = 0
    """Decisions in a row that found fewer replicas enough."""
    calm_peak: int = 0
    """The most that one of those asked for."""
    calm_needed: int = 0
    """0: as configured."""
    since_shrunk: int | None = None
    """Decisions since it last shrank, if it has not grown after that; and what it needed then."""
    need_when_shrunk: float = 0.0
    missed: int = 0
    """Decisions in a row that found the SLO missed though the load was within its target: the load does not explain it."""
    pending: int = 0
    """Decisions in a row with fewer replicas ready than desired."""
    ceiling: float | None = None
    """Use above which an SLO was missed lately."""
    ceiling_age: int = 0
    trial: Trial | None = None
    """It grows for an SLO, and whether that helps is not known yet."""
    vain: Vain | None = None
    """It did not."""


@dataclass(frozen=True)
class PoolDecision:
    """The record of one decision on one pool."""

    desired: int
    actual: int
    """Ready when it was decided."""
    need: float
    """Replicas that the load asks for, before limits and hysteresis."""
    reason: Reason
    memory: PoolMemory


def decide_pool(config: ScalingConfig, limits: PoolLimits, memory: PoolMemory, signal: PoolSignal) -> PoolDecision:
    """The pool's next size, within its limits."""
    memory = _remember(config, memory, signal)
    missed = memory.missed >= MISSES
    if missed:
        memory = _try_to_help(config, memory, signal)
    need = _load(config, memory, signal) / _target_use(config, memory)
    if missed and memory.vain is not None:
        return PoolDecision(memory.desired, signal.ready, need, Reason.IN_VAIN, memory)
    wanted = limits.clamp(max(ceil(need - ROUNDING), signal.ready + 1 if missed else 0))
    if wanted > memory.desired:
        return _grow(config, memory, signal, need, wanted, Reason.SLO if missed else Reason.LOAD)
    enough = limits.clamp(ceil(need * (1 + config.down_margin) - ROUNDING))
    waiting_for_replicas = 0 < memory.pending < config.pending_periods
    slo_kept = signal.slo_error is None or signal.slo_error <= 1 or memory.vain is not None
    if enough < memory.desired and slo_kept and not waiting_for_replicas:
        return _shrink_if_calm(config, memory, signal, need, enough)
    reason = Reason.LIMIT if need > limits.max else Reason.STEADY
    return PoolDecision(memory.desired, signal.ready, need, reason, replace(memory, calm=0, calm_peak=0))


def _remember(config: ScalingConfig, memory: PoolMemory, signal: PoolSignal) -> PoolMemory:
    """Everything one period older; what is too old is forgotten."""
    since, age = memory.since_shrunk, memory.ceiling_age + 1
    return replace(
        memory,
        since_shrunk=None if since is None else since + 1,
        pending=memory.pending + 1 if signal.ready < memory.desired else 0,
        missed=memory.missed + 1 if _unexplained_miss(config, memory, signal) else 0,
        ceiling=None if age > config.memory_periods else memory.ceiling,
        ceiling_age=age,
        trial=memory.trial and memory.trial.older(signal.slo_error, config.memory_periods),
        vain=memory.vain and memory.vain.older(_load(config, memory, signal), signal.slo_error, config.memory_periods),
    )


def _load(config: ScalingConfig, memory: PoolMemory, signal: PoolSignal) -> float:
    """In replicas. While some are on their way the queue that gathers says nothing new: it is shared among the periods in which it
    gathered."""
    return signal.used + signal.queued / max(config.drain_periods, memory.pending + 1)


def _unexplained_miss(config: ScalingConfig, memory: PoolMemory, signal: PoolSignal) -> bool:
    """Where replicas are on their way, what they will do is not known yet."""
    if memory.vain is not None:
        return False
    if signal.slo_error is None or signal.slo_error <= 1 or signal.ready < memory.desired:
        return False
    return 0 < _load(config, memory, signal) <= signal.ready * _target_use(config, memory) * (1 + ROUNDING)


def _try_to_help(config: ScalingConfig, memory: PoolMemory, signal: PoolSignal) -> PoolMemory:
    """After a miss that the load does not explain: with a lower ceiling, or without any where that has not helped."""
    error, load = signal.slo_error, _load(config, memory, signal)
    assert error is not None, "a missed SLO was measured"
    use = min(_target_use(config, memory), load / max(1, signal.ready))
    trial, memory = memory.trial, replace(memory, missed=0)
    if trial is not None and trial.is_in_vain(use, error):
        return replace(memory, calm=0, calm_peak=0, trial=None, ceiling=None, vain=Vain(load, error))
    if trial is None or not trial.goes_on(use, error):
        trial = Trial(use, error)
    ceiling = max(min(LEAST_TARGET_USE, config.target_use), trial.least_use, use / min(error, STEP))
    return replace(memory, trial=trial, ceiling=ceiling, ceiling_age=0)


def _target_use(config: ScalingConfig, memory: PoolMemory) -> float:
    return config.target_use if memory.ceiling is None else min(config.target_use, memory.ceiling)


def _grow(
    config: ScalingConfig, memory: PoolMemory, signal: PoolSignal, need: float, wanted: int, reason: Reason
) -> PoolDecision:
    calm_needed = memory.calm_needed or config.calm_periods
    if memory.since_shrunk is not None and need < SAME_LOAD * max(1.0, memory.need_when_shrunk):
        reversed_soon = memory.since_shrunk <= config.memory_periods
        calm_needed = min(CALM_LIMIT * config.calm_periods, 2 * calm_needed) if reversed_soon else config.calm_periods
    grown = replace(memory, desired=wanted, calm=0, calm_peak=0, calm_needed=calm_needed, since_shrunk=None, missed=0)
    return PoolDecision(wanted, signal.ready, need, reason, grown)


def _shrink_if_calm(config: ScalingConfig, memory: PoolMemory, signal: PoolSignal, need: float, enough: int) -> PoolDecision:
    calm, peak = memory.calm + 1, max(memory.calm_peak, enough)
    if calm < (memory.calm_needed or config.calm_periods):
        return PoolDecision(memory.desired, signal.ready, need, Reason.STEADY, replace(memory, calm=calm, calm_peak=peak))
    shrunk = replace(memory, desired=peak, calm=0, calm_peak=0, since_shrunk=0, need_when_shrunk=need, pending=0)
    return PoolDecision(peak, signal.ready, need, Reason.CALM, shrunk)
