"""What speed costs: the cheapest way to give every reader so many tokens per second."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.capacity import SPLITS, Setting, plan_decode
from planner.dollars import usd_per_million
from planner.workload import Workload


@dataclass(frozen=True)
class SpeedPrice:
    """`usd_per_million`: of answer tokens on decode GPUs that are always full."""

    tokens_per_s: float
    usd_per_million: float
    gpus_per_worker: int


def speed_curve(setting: Setting, workload: Workload, speeds: Iterable[float]) -> list[SpeedPrice]:
    """Of the speeds that some split can give."""
    return [price for speed in speeds if (price := _cheapest(setting, workload, speed)) is not None]


def _cheapest(setting: Setting, workload: Workload, speed: float) -> SpeedPrice | None:
    plans = [plan for gpus in SPLITS if (plan := plan_decode(setting, workload, speed, gpus)) is not None]
    if not plans:
        return None
    best = max(plans, key=lambda plan: plan.tokens_per_s_per_gpu)
    return SpeedPrice(speed, usd_per_million(setting.gpu_hour_usd, best.tokens_per_s_per_gpu), best.gpus_per_worker)
