"""Everything that `serval plan` says, as plain values: what it prints is made of these alone, and so is its JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from planner.capacity import Plan, Setting, Slo, kv_tokens_per_gpu, make_plan, tpot_s
from planner.comparison import Comparison, compare
from planner.overheads import residuals
from planner.scaling_config import PoolLimits, ScalingConfig
from planner.simulated_pools import Speed
from planner.speed_curve import SpeedPrice, speed_curve
from planner.trace import Arrival
from planner.workload import Workload
from protocol.errors import ConfigError

SPEEDS = (10, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200)
"""Tokens per second and reader that are priced."""
MOST_DECISIONS = 10**6
"""Of a simulation: half a year. More would take many minutes, for each split that is tried."""
SPARE_REPLICAS = 2.0
"""Times the planned workers that a simulated pool may grow to."""


@dataclass(frozen=True)
class Report:
    """`largest_error`: of the model, at any figure that was published (docs/planner.md)."""

    setting: Setting
    workload: Workload
    slo: Slo
    plan: Plan
    curve: list[SpeedPrice]
    largest_error: float
    comparison: Comparison | None

    def to_json(self) -> dict[str, Any]:
        setting = self.setting
        return {
            "model": setting.model.name,
            "gpu": setting.gpu.name,
            "gpu_hour_usd": setting.gpu_hour_usd,
            "number_format_bytes": asdict(setting.number_format),
            "overheads": asdict(setting.overheads),
            "draft_acceptance": setting.draft_acceptance,
            "kv_bytes_per_token": setting.model.kv_values_per_token * setting.number_format.kv,
            "workload": asdict(self.workload),
            "slo": asdict(self.slo),
            "plan": asdict(self.plan),
            "speed_curve": [asdict(price) for price in self.curve],
            "largest_error_at_published_figures": self.largest_error,
            "simulation": None if self.comparison is None else _comparison_json(self.comparison),
        }


def make_report(setting: Setting, workload: Workload, slo: Slo, arrivals: list[Arrival] | None, start_s: float) -> Report:
    """`arrivals`: a trace to simulate, with replicas that take `start_s` to start. Raises ConfigError."""
    plan = make_plan(setting, workload, slo)
    comparison = None if arrivals is None else _simulate(setting, workload, slo, plan, arrivals, start_s)
    curve = speed_curve(setting, workload, (float(speed) for speed in SPEEDS))
    largest_error = max(abs(residual.error) for residual in residuals(setting.overheads))
    return Report(setting, workload, slo, plan, curve, largest_error, comparison)


def _simulate(
    setting: Setting, workload: Workload, slo: Slo, plan: Plan, arrivals: list[Arrival], start_s: float
) -> Comparison:
    """Of a worker with experts, which computes as many prompts at a time as it has GPUs, the simulation makes one fast server."""
    prefill, decode = plan.prefill, plan.decode
    most = max(2.0, decode.requests_per_gpu * decode.gpus_per_worker)
    alone_s, full_s = (
        tpot_s(setting, decode.gpus_per_worker, requests / decode.gpus_per_worker, workload.context) for requests in (1.0, most)
    )
    kv_tokens = int(kv_tokens_per_gpu(setting, decode.gpus_per_worker) * decode.gpus_per_worker)
    longest = max(one.isl + one.osl for one in arrivals)
    speed = Speed(
        prompt_tokens_per_s=prefill.tokens_per_s_per_gpu * prefill.gpus_per_worker,
        step_s=alone_s,
        step_s_per_request=(full_s - alone_s) / (most - 1),
        kv_tokens=max(longest, min(kv_tokens, int(most * workload.context))),
        start_s=start_s,
    )
    config = ScalingConfig(
        prefill=PoolLimits(max=int(SPARE_REPLICAS * prefill.workers), gpus=prefill.gpus_per_worker),
        decode=PoolLimits(max=int(SPARE_REPLICAS * decode.workers), gpus=decode.gpus_per_worker),
        slo_ttft_s=slo.ttft_s,
        slo_tokens_per_s=slo.tokens_per_s,
    )
    if (duration_s := arrivals[-1].time_s) > MOST_DECISIONS * config.period_s:
        days = MOST_DECISIONS * config.period_s / 86400
        raise ConfigError(f"simulate: the trace is {duration_s / 86400:,.0f} days long, and {days:.0f} can be simulated")
    return compare(arrivals, speed, config)


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "scaled": asdict(comparison.scaled),
        "best_fixed": None if comparison.fixed is None else asdict(comparison.fixed),
        "records": [
            {
                "time_s": record.time_s,
                "prefill": {"desired": record.decision.prefill.desired, "actual": record.decision.prefill.actual},
                "decode": {"desired": record.decision.decode.desired, "actual": record.decision.decode.actual},
            }
            for record in comparison.outcome.records
        ],
    }
