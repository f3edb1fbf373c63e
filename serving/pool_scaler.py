"""The scaling decision beside a router: once per period both pools' sizes, from what the router knows. Others carry it out.

Ray Serve's policy (serving/ray_scaling.py) takes `desired` from here; without Ray, whoever scales reads the same number from
/metrics. Every decision is a record there and in the log: desired, actual, need, and the reason.
"""

import asyncio
import logging
from collections.abc import Callable
from statistics import fmean

from planner.pool_scaling import PoolDecision, PoolSignal, Reason
from planner.scaling import ScalingMemory, Signals, decide, start
from planner.scaling_config import ScalingConfig
from router.pool_load import ClusterLoad
from telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

READINGS = 10
"""Per period. What is held in decode at one moment says little where answers are few."""


class PoolScaler:
    """On one event loop. `read(window_s)` gives the load now, or None where there is no router."""

    def __init__(
        self,
        config: ScalingConfig,
        initial: tuple[int, int],
        read: Callable[[float], ClusterLoad | None],
        metrics: Metrics,
    ) -> None:
        """`initial`: workers of both pools that the cluster begins with."""
        self._config = config
        self._initial = initial
        self._read = read
        self._metrics = metrics
        self._memory: ScalingMemory | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def desired(self) -> tuple[int, int] | None:
        """Workers that both pools shall have. None while nothing was decided: then they shall stay as they are."""
        return None if self._memory is None else (self._memory.prefill.desired, self._memory.decode.desired)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="pool-scaler")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        before: ClusterLoad | None = None
        while True:
            readings = []
            for _ in range(READINGS):
                await asyncio.sleep(self._config.period_s / READINGS)
                if (load := self._read(self._config.period_s)) is not None:
                    readings.append(load)
            try:
                if before is not None and readings:
                    self.decide(before, readings)
            except Exception:  # a bug, and without another try the pools would stay as they are for ever
                logger.exception("the pools' sizes could not be decided")
            before = readings[-1] if readings else None

    def decide(self, before: ClusterLoad, readings: list[ClusterLoad]) -> None:
        """One decision, on the readings of the period since `before`. While a pool has no worker at all nothing is known of its
        load, and both stay as they are."""
        now = readings[-1]
        if not (now.prefill_ready and now.decode_ready):
            logger.info("scaling: %d prefill and %d decode workers are there; no decision", now.prefill_ready, now.decode_ready)
            return
        config = self._config
        if self._memory is None:  # a router that starts anew in a cluster that has grown must not shrink it
            self._memory = start(config, *map(max, self._initial, (now.prefill_ready, now.decode_ready)))
        signals = _signals(config, before, readings)
        decision = decide(config, self._memory, signals)
        self._memory = decision.memory
        self._record("prefill", signals.prefill, decision.prefill)
        self._record("decode", signals.decode, decision.decode)

    def _record(self, pool: str, signal: PoolSignal, decision: PoolDecision) -> None:
        metrics = self._metrics
        metrics.pool_load.of(pool=pool, kind="used").set(signal.used)
        metrics.pool_load.of(pool=pool, kind="queued").set(signal.queued)
        metrics.pool_needed.of(pool=pool).set(decision.need)
        metrics.pool_desired.of(pool=pool).set(decision.desired)
        metrics.scaling_decisions.of(pool=pool, reason=str(decision.reason)).inc()
        is_news = decision.reason is not Reason.STEADY or decision.actual != decision.desired
        logger.log(
            logging.INFO if is_news else logging.DEBUG,
            "scaling %s: desired %d, actual %d, need %.2f (used %.2f, queued %.2f, SLO error %s): %s",
            pool, decision.desired, decision.actual, decision.need, signal.used, signal.queued,
            "unknown" if signal.slo_error is None else f"{signal.slo_error:.2f}", decision.reason,
        )  # fmt: skip


def _signals(config: ScalingConfig, before: ClusterLoad, readings: list[ClusterLoad]) -> Signals:
    now = readings[-1]
    seconds = now.at - before.at
    return Signals(
        prefill=PoolSignal(
            ready=now.prefill_ready,
            used=(now.prefill_busy_s - before.prefill_busy_s) / seconds,
            queued=now.prefill_queue_s / config.period_s,
            slo_error=None if now.ttft_s is None else now.ttft_s / config.slo_ttft_s,
        ),
        decode=PoolSignal(
            ready=now.decode_ready,
            used=fmean(load.decode_used for load in readings),
            queued=now.decode_queued,
            slo_error=None if now.tpot_s is None else now.tpot_s * config.slo_tokens_per_s,
        ),
    )
