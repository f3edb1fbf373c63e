"""The decision beside a router is recorded; Ray's policy follows it, and holds where it is old."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from planner.scaling_config import PoolLimits, ScalingConfig
from router.pool_load import ClusterLoad
from serving.pool_scaler import PoolScaler
from serving.ray_app import replica_count, scaling_policy
from serving.ray_scaling import STATS, PoolPolicy
from telemetry.metrics import Metrics

CONFIG = ScalingConfig(prefill=PoolLimits(max=4), decode=PoolLimits(max=4), period_s=10.0)
IDLE = ClusterLoad(0.0, 1, 1, 0.0, 0.0, 0.1, 0.0, None, None)


def scaler_of(metrics: Metrics, initial: tuple[int, int] = (1, 1)) -> PoolScaler:
    return PoolScaler(CONFIG, initial, lambda _: None, metrics)


def later(load: ClusterLoad, **changes: Any) -> ClusterLoad:
    return replace(load, at=load.at + CONFIG.period_s, **changes)


def test_a_queue_of_prompts_makes_prefill_larger_and_is_recorded() -> None:
    metrics = Metrics("router", "router-0")
    scaler = scaler_of(metrics)
    assert scaler.desired is None
    scaler.decide(IDLE, [later(IDLE, prefill_busy_s=10.0, prefill_queue_s=20.0)])
    assert scaler.desired == (3, 1), "(1 + 2/2) / 0.7"
    assert metrics.value("serval_pool_desired_workers", pool="prefill") == 3
    assert metrics.value("serval_pool_needed_workers", pool="prefill") == pytest.approx(2 / 0.7)
    assert metrics.value("serval_pool_load_workers", pool="prefill", kind="queued") == pytest.approx(2.0)
    assert metrics.value("serval_scaling_decisions_total", pool="prefill", reason="load") == 1
    assert metrics.value("serval_scaling_decisions_total", pool="decode", reason="steady") == 1


def test_decode_s_use_is_the_mean_of_a_period() -> None:
    metrics = Metrics("router", "router-0")
    readings = [replace(IDLE, at=float(at), decode_used=used) for at, used in ((5, 0.2), (10, 0.8))]
    scaler_of(metrics).decide(IDLE, readings)
    assert metrics.value("serval_pool_load_workers", pool="decode", kind="used") == pytest.approx(0.5)


def test_nothing_is_decided_about_a_pool_that_is_not_there_and_a_new_router_shrinks_nobody() -> None:
    scaler = scaler_of(Metrics("router", "router-0"), (2, 1))
    scaler.decide(IDLE, [later(IDLE, decode_ready=0)])
    assert scaler.desired is None
    scaler.decide(IDLE, [later(IDLE, prefill_ready=1, decode_ready=3)])
    assert scaler.desired == (2, 3)


@dataclass(frozen=True)
class Point:
    timestamp: float
    value: float


def contexts(now: float, **recorded: list[Point]) -> dict[str, Any]:
    """As Serve hands them over, by deployment. `recorded`: series by router, of both pools alike."""
    raw = {stat: dict(recorded) for stat in STATS.values()}
    return {
        name: SimpleNamespace(deployment_name=name, current_time=now, raw_metrics=raw if name == "Router" else {})
        for name in ("Router", "PrefillWorker", "DecodeWorker")
    }


POLICY = PoolPolicy({"prefill": "PrefillWorker", "decode": "DecodeWorker"}, stale_s=10.0)


def test_the_policy_follows_the_router_that_wants_most() -> None:
    told = contexts(100.0, one=[Point(90.0, 5.0), Point(99.0, 2.0)], two=[Point(98.0, 3.0)])
    assert POLICY(told) == ({"PrefillWorker": 3, "DecodeWorker": 3}, {})


def test_the_policy_holds_where_nobody_has_spoken_lately() -> None:
    assert POLICY(contexts(100.0, one=[Point(89.0, 3.0)], two=[])) == ({}, {})
    assert POLICY(contexts(100.0)) == ({}, {})


def test_what_serve_is_told() -> None:
    assert replica_count(None, "decode", 2) == {"num_replicas": 2} and scaling_policy(None) == {}
    decode = replica_count(CONFIG, "decode", 9)["autoscaling_config"]
    assert (decode["min_replicas"], decode["max_replicas"], decode["initial_replicas"]) == (1, 4, 4)
    assert decode["downscale_delay_s"] == decode["upscale_delay_s"] == 0, "hysteresis is the decision's"
    router = replica_count(CONFIG, "router", 2)["autoscaling_config"]
    assert router["min_replicas"] == router["max_replicas"] == 2
    policy = scaling_policy(CONFIG)["autoscaling_policy"]
    assert policy["policy_function"] == "serving.ray_scaling:PoolPolicy"
    PoolPolicy(**policy["policy_kwargs"])
