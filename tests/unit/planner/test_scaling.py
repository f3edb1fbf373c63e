"""The scaling decision: whatever the signals it keeps its limits; a constant load moves nothing; a swing is followed at once."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.pool_scaling import PoolDecision, PoolSignal, Reason, decide_pool
from planner.scaling import Decision, ScalingMemory, Signals, decide, start
from planner.scaling_config import PoolLimits, ScalingConfig
from planner.slo_trial import Trial

LOADS = st.floats(0, 1e6)
POOL_SIGNALS = st.builds(
    PoolSignal, ready=st.integers(0, 100), used=LOADS, queued=LOADS, slo_error=st.none() | st.floats(0, 1e9)
)
LIMITS = st.builds(
    lambda least, more, gpus: PoolLimits(min=least, max=least + more, gpus=gpus),
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(1, 8),
)


@st.composite
def configs(draw: st.DrawFn) -> ScalingConfig:
    prefill, decode = draw(LIMITS), draw(LIMITS)
    least = prefill.min * prefill.gpus + decode.min * decode.gpus
    budget = draw(st.none() | st.integers(max(2, least), least + 40))
    return ScalingConfig(prefill=prefill, decode=decode, max_gpus=budget)


@settings(max_examples=50, deadline=None)
@given(configs(), st.lists(st.tuples(POOL_SIGNALS, POOL_SIGNALS), min_size=1, max_size=10))
def test_never_outside_the_limits(config: ScalingConfig, signals: list[tuple[PoolSignal, PoolSignal]]) -> None:
    memory = start(config, 1, 1)
    for prefill, decode in signals:
        decision = decide(config, memory, Signals(prefill, decode))
        for pool, limits, actual in ((decision.prefill, config.prefill, prefill), (decision.decode, config.decode, decode)):
            assert limits.min <= pool.desired <= limits.max
            assert pool.desired == pool.memory.desired
            assert pool.actual == actual.ready
        if config.max_gpus is not None:
            used = decision.prefill.desired * config.prefill.gpus + decision.decode.desired * config.decode.gpus
            assert used <= config.max_gpus
        memory = decision.memory


def run(
    config: ScalingConfig,
    load: "list[tuple[float, float]]",
    memory: ScalingMemory,
    slo_limit: float = 1.0,
    noise: float = 0.0,
    start_periods: int = 1,
) -> list[Decision]:
    """Pools that do what they can of a load (in replicas, per period); what they cannot waits. Replicas come `start_periods` late.
    The SLO is missed where more than `slo_limit` of a pool is in use."""
    random, queues = Random(7), [0.0, 0.0]
    decisions: list[Decision] = []
    history = [(memory.prefill.desired, memory.decode.desired)] * (start_periods + 1)
    for loads in load:
        signals = []
        for pool, amount in enumerate(loads):
            ready = min(history[-1][pool], history[-1 - start_periods][pool])
            waiting = queues[pool] + amount * (1 + noise * random.uniform(-1, 1))
            used = min(waiting, ready)
            queues[pool] = waiting - used
            signals.append(PoolSignal(ready, used, queues[pool], used / ready / slo_limit))
        decision = decide(config, memory, Signals(*signals))
        memory = decision.memory
        decisions.append(decision)
        history.append((decision.prefill.desired, decision.decode.desired))
    return decisions


def turns(sizes: list[int]) -> int:
    """How often a pool changed its direction."""
    moves = [after - before for before, after in pairwise(sizes) if after != before]
    return sum((one > 0) != (other > 0) for one, other in pairwise(moves))


WIDE = ScalingConfig(prefill=PoolLimits(max=30), decode=PoolLimits(max=30))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 8), st.floats(0, 8), st.integers(1, 30), st.integers(1, 30), st.floats(0.3, 1.0))
def test_a_constant_load_does_not_flap(prefill: float, decode: float, first: int, second: int, slo_limit: float) -> None:
    decisions = run(WIDE, [(prefill, decode)] * 120, start(WIDE, first, second), slo_limit)
    for sizes in ([one.prefill.desired for one in decisions], [one.decode.desired for one in decisions]):
        # Up for the queue, down when it is gone, and up once more where the SLO then turns out to need it.
        assert turns([*sizes]) <= 2
        assert len(set(sizes[60:])) == 1, "settled"
    last = decisions[-1]
    for pool, load in ((last.prefill, prefill), (last.decode, decode)):
        assert pool.desired >= load / min(WIDE.target_use, slo_limit) - 1e-6
        assert pool.desired <= max(1, 2 + load / (0.6 * min(WIDE.target_use, slo_limit)))


@pytest.mark.parametrize("load", [0.5, 1.4, 2.1, 2.8, 3.5, 6.9])
def test_a_noisy_load_does_not_flap(load: float) -> None:
    """Ten minutes at the default period are 40 decisions; noise of a tenth either way."""
    decisions = run(WIDE, [(load, load)] * 160, start(WIDE, 3, 3), noise=0.1)
    sizes = [one.prefill.desired for one in decisions][20:]
    for window in range(0, len(sizes) - 40, 10):
        assert turns(sizes[window : window + 40]) <= 1


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 4), st.floats(6, 18))
def test_a_swing_is_followed_within_two_periods(low: float, high: float) -> None:
    phases = [(high, low)] * 10 + [(low, high)] * 10
    decisions = run(WIDE, phases, start(WIDE, 30, 6))
    before, after = decisions[9], decisions[11]
    assert after.decode.desired >= high / WIDE.target_use - 1e-6 > before.decode.desired
    assert after.prefill.desired < before.prefill.desired
    assert after.prefill.desired >= low / WIDE.target_use - 1e-6


def test_two_pools_share_what_gpus_there_are() -> None:
    config = ScalingConfig(prefill=PoolLimits(max=8, gpus=2), decode=PoolLimits(max=8, gpus=1), max_gpus=10)
    heavy = Signals(PoolSignal(2, 2, 8), PoolSignal(6, 1.0))
    first = decide(config, start(config, 2, 6), heavy)
    assert (first.prefill.desired, first.decode.desired) == (4, 2), "decode gives up what it does not need"
    assert first.prefill.reason is Reason.LIMIT
    second = decide(config, first.memory, Signals(PoolSignal(4, 4, 8), PoolSignal(2, 1.0)))
    assert (second.prefill.desired, second.decode.desired) == (4, 2)


def test_an_slo_that_the_load_does_not_explain_makes_the_pool_larger_and_is_remembered() -> None:
    config = ScalingConfig(prefill=PoolLimits(max=8))
    memory, fine = start(config, 2, 1), PoolSignal(1, 0.3)
    sizes = []
    for _ in range(4):
        decision = decide(config, memory, Signals(PoolSignal(memory.prefill.desired, 1.0, 0.0, 1.3), fine))
        memory = decision.memory
        sizes.append(decision.prefill.desired)
    assert sizes[:3] == [2, 2, 3]
    for _ in range(30):  # it helped; the old size is not tried again
        decision = decide(config, memory, Signals(PoolSignal(memory.prefill.desired, 1.0, 0.0, 0.8), fine))
        memory = decision.memory
        assert decision.prefill.desired == 3


def under_slo(
    periods: int, load: float, error: Callable[[int, int], float], first: int = 2, most: int = 30
) -> list[PoolDecision]:
    """A pool that gets what it asks for, under a load that one decision explains; `error` is of the period and what is ready."""
    config = ScalingConfig(prefill=PoolLimits(max=most))
    decisions: list[PoolDecision] = []
    memory, ready = start(config, first, 1).prefill, first
    for period in range(periods):
        signal = PoolSignal(ready, min(load, ready), max(0.0, load - ready), error(period, ready))
        decisions.append(decide_pool(config, config.prefill, memory, signal))
        memory, ready = decisions[-1].memory, decisions[-1].desired
    return decisions


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("load", "enough"), [(0.05, 1), (1.0, 2), (6.0, 10)])
def test_an_slo_that_more_replicas_do_not_help_does_not_fill_the_cluster(load: float, enough: int, noise: float) -> None:
    """Such as a prompt that alone takes longer than it may. Four hours at the default period."""
    random = Random(3)
    decisions = under_slo(960, load, lambda *_: 1.3 * (1 + noise * random.uniform(-1, 1)), first=enough)
    sizes = [one.desired for one in decisions]
    # A little, to find out; noise may look like a first success.
    assert max(sizes) <= 1.5 ** (2 if noise else 1) * enough + 1
    assert sizes.count(enough) > 0.9 * len(sizes)
    tries = [one.reason for one in decisions].count(Reason.IN_VAIN)
    assert 4 <= tries <= 5, "once more each hour"
    given_up = next(one for one in decisions if one.reason is Reason.IN_VAIN)
    assert given_up.need == pytest.approx(load / 0.7), "what was learned is forgotten"


@pytest.mark.parametrize(
    ("error", "kept_from"),
    [
        (lambda _, ready: 2.0 / ready / 0.3, 7),  # in proportion to the use of each
        (lambda _, ready: 0.9 + 0.4 / ready, 4),  # most of it is not for want of replicas
        (
            lambda period, ready: 2.0 / ready / (0.5 if period < 60 else 0.3),
            7,
        ),  # longer requests later: it has to grow once more
    ],
)
def test_what_helps_goes_on_until_the_slo_is_kept(error: Callable[[int, int], float], kept_from: int) -> None:
    decisions = under_slo(120, 2.0, error, first=3)
    assert Reason.IN_VAIN not in {one.reason for one in decisions}
    assert {one.desired for one in decisions[100:]} == {kept_from}
    assert error(119, kept_from) <= 1 < error(119, kept_from - 1)


def test_what_was_in_vain_is_tried_again_when_conditions_are_others() -> None:
    def error(period: int, ready: int) -> float:
        if period < 40:
            return 1.4  # whatever is done
        return 0.5 if period < 60 else 2.0 / ready / 0.3

    sizes = [one.desired for one in under_slo(120, 2.0, error, first=3)]
    assert set(sizes[30:60]) == {4}, "2 / 0.7 and a margin"
    assert set(sizes[100:]) == {7}


def test_a_pool_that_is_not_helped_leaves_the_other_its_share() -> None:
    config = ScalingConfig(prefill=PoolLimits(max=20), decode=PoolLimits(max=20), max_gpus=8)
    memory = start(config, 2, 6)
    sizes = []
    for _ in range(200):
        prefill, decode = memory.prefill.desired, memory.decode.desired
        signals = Signals(PoolSignal(prefill, 1.0, 0.0, 1.5), PoolSignal(decode, 3.5))
        memory = decide(config, memory, signals).memory
        sizes.append(memory.decode.desired)
    assert min(sizes) == 5, "3.5 / 0.7"


def test_replicas_that_never_come_do_not_stick() -> None:
    config = ScalingConfig(prefill=PoolLimits(max=8), pending_periods=5)
    memory = decide(config, start(config, 2, 1), Signals(PoolSignal(2, 2, 6), PoolSignal(1, 0.3))).memory
    asked = memory.prefill.desired
    assert asked > 2
    sizes = []
    for _ in range(12):
        decision = decide(config, memory, Signals(PoolSignal(2, 0.5), PoolSignal(1, 0.3)))
        memory = decision.memory
        sizes.append(decision.prefill.desired)
    assert sizes[:4] == [asked] * 4, "they may be starting"
    assert sizes[-1] == 1


@pytest.mark.parametrize(
    ("settings_", "named"),
    [({"prefill": {"min": 3, "max": 2}}, "max 2 is below min 3"), ({"max_gpus": 2, "decode": {"min": 2}}, "max_gpus 2")],
)
def test_limits_that_contradict_are_refused(settings_: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ScalingConfig.model_validate(settings_)


def test_what_was_measured_before_a_long_silence_is_compared_with_nothing() -> None:
    trial: Trial | None = Trial(use=0.6, error=1.4)
    for _ in range(10):
        assert trial is not None
        trial = trial.older(None, 10)
    assert trial is not None and trial.is_in_vain(use=0.3, error=1.4)
    assert trial.older(None, 10) is None
