"""The simulation queues as theory says, loses nobody, and shows pools that follow the load and save money."""

from random import Random
from statistics import fmean

import pytest

from planner.comparison import compare
from planner.queueing import waiting_probability, waiting_time_s
from planner.scaling_config import PoolLimits, ScalingConfig
from planner.simulated_pools import Speed
from planner.simulation import simulate
from planner.synthetic import swing, week
from planner.trace import Arrival

SPEED = Speed(prompt_tokens_per_s=8000, step_s=0.01, step_s_per_request=0.0002, kv_tokens=30_000, start_s=20)
CONFIG = ScalingConfig(prefill=PoolLimits(max=10), decode=PoolLimits(max=10), period_s=30, slo_ttft_s=3)


def test_one_prefill_replica_is_a_queue_with_constant_service() -> None:
    """M/D/1: the mean wait is busy · service / (2 · (1 - busy)), by Pollaczek and Khinchine."""
    random, now, arrivals = Random(3), 0.0, []
    for _ in range(5000):
        now += random.expovariate(7.0)
        arrivals.append(Arrival(now, 800, 2))
    outcome = simulate(arrivals, SPEED, CONFIG, 1, 4, scale=False)
    waits = [one.first_token - one.arrived - 0.1 for one in outcome.requests]
    assert min(waits) == pytest.approx(0.0, abs=1e-9)
    assert fmean(waits) == pytest.approx(0.7 * 0.1 / (2 * 0.3), rel=0.15)
    kept = sum(wait <= waiting_time_s(1, 7.0, 0.1, 0.0, 0.95) for wait in waits) / len(waits)
    assert kept == pytest.approx(0.95, abs=0.02), "and the plan's formula for its tail holds"


def test_erlang_c() -> None:
    assert waiting_probability(1, 0.7) == pytest.approx(0.7)
    assert waiting_probability(2, 1.0) == pytest.approx(1 / 3)
    assert waiting_time_s(2, 10, 0.2, 0.0, 0.95) == float("inf")
    assert waiting_probability(10**12, 0.9e12) == 0.0, "without counting through them"
    assert waiting_probability(10, 0.0) == 0.0
    assert waiting_time_s(100, 1.0, 0.2, 0.0, 0.95) == 0


def test_decode_is_shared_equally() -> None:
    """Two answers of 101 tokens, the second 50 steps later: alone, together, alone."""
    outcome = simulate([Arrival(0.0, 80, 101), Arrival(0.5, 80, 101)], SPEED, CONFIG, 1, 1, scale=False)
    first, second = outcome.requests
    assert first.first_token == pytest.approx(0.01)
    assert first.ended == pytest.approx(0.01 + 50 * 0.01 + 50 * 0.0102)
    assert second.ended == pytest.approx(0.51 + 50 * 0.0102 + 50 * 0.01)


def test_a_full_pool_makes_them_wait_in_order() -> None:
    small = Speed(8000, 0.01, 0.0002, 1000, 20)
    outcome = simulate(
        [Arrival(0.0, 400, 500), Arrival(0.1, 400, 500), Arrival(0.2, 400, 500)], small, CONFIG, 2, 1, scale=False
    )
    first, second, third = outcome.requests
    assert second.admitted == first.ended and third.admitted == second.ended


def test_pools_follow_a_swing_within_two_decisions_and_lose_nobody() -> None:
    phase_s, phases = 300.0, 4
    arrivals = list(swing(5, rate=6.0, phase_s=phase_s, phases=phases))
    outcome = simulate(arrivals, SPEED, CONFIG, 6, 2, scale=True)
    assert all(one.ended >= one.first_token >= one.admitted >= one.arrived for one in outcome.requests), "everybody was served"
    assert len(outcome.requests) == len(arrivals)
    offered = {"prefill": 6.0 * 4000 / 8000, "decode": 6.0 * 6.3 * 900 / 30_000}
    for phase in range(1, phases):
        grows = "prefill" if phase % 2 == 0 else "decode"
        within = [one.decision for one in outcome.records if phase * phase_s < one.time_s <= (phase + 1) * phase_s]
        sizes = [getattr(one, grows).desired for one in within]
        assert sizes[1] >= offered[grows] / 0.75, f"{grows} in phase {phase}: {sizes}"
        if grows == "decode":
            assert within[-1].prefill.desired == 1 < within[0].prefill.desired, "what is not needed is given back"
        assert max(sizes[6:]) - min(sizes[6:]) <= 1, "and stays"


def test_a_week_costs_less_than_the_best_split_that_stays() -> None:
    """A week's rhythm at a hundredth of its length; the figures of a whole one are in docs/planner.md."""
    slow = Speed(prompt_tokens_per_s=600, step_s=0.02, step_s_per_request=0.001, kv_tokens=8_500, start_s=60)
    config = ScalingConfig(prefill=PoolLimits(max=5), decode=PoolLimits(max=5), period_s=60, slo_ttft_s=30, slo_tokens_per_s=20)
    arrivals = [Arrival(one.time_s, min(one.isl, 5000), min(one.osl, 1500)) for one in week(1, 0.05, days=1)]
    comparison = compare(arrivals, slow, config)
    assert comparison.scaled.attainment > 0.95
    assert comparison.fixed is None or comparison.scaled.gpu_hours < 0.95 * comparison.fixed.gpu_hours
    moves = [record.decision for record in comparison.outcome.records]
    assert max(one.prefill.desired for one in moves) > 1
