"""A request's figures, taken where they are known, into telemetry's metrics and its own summary."""

from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import Histogram

from protocol import cluster_pb2
from protocol.errors import ServalError
from router.computed_time import ComputedTime
from router.objectives import NONE, Objectives
from router.placement.placer import Placement
from router.recent_answers import RecentAnswers
from router.request import End, Request
from router.shedding import Shed, ShedReason
from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.tenant import LimitReached
from router.worker_time import WorkerTime
from telemetry.cost import CostConfig
from telemetry.metrics import Metrics
from telemetry.one_writer import Count


class Spent(StrEnum):
    """What became of the worker time of one attempt; a metric label."""

    SERVED = "served"
    FAILED = "failed"
    RETRIED = "retried"
    """Another worker went on with the request."""
    LOST = "lost"
    """Taken by workers that died, or for askers that did, before it could be told for whom."""


NOBODY = ""
"""The tenant of what is lost."""


@dataclass(frozen=True)
class _TenantMetrics:
    """Children that are touched for every token, looked up once."""

    time_to_first_token: Histogram
    generation_tokens: Count


class Accounting:
    """Every accepted request reaches `ended` exactly once; every refused one reaches `refused`."""

    def __init__(self, metrics: Metrics, prices: CostConfig, objectives: Objectives = NONE) -> None:
        self._metrics = metrics
        self._objectives = objectives
        self._prices = {"prefill": prices.prefill, "decode": prices.decode}
        self._inter_token_latency = metrics.inter_token_latency.of()
        self._running, self._waiting = metrics.requests_running.of(), metrics.requests_waiting.of()
        self._by_tenant: dict[str, _TenantMetrics] = {}
        self.computed = ComputedTime(on_lost=self._on_lost)
        self.answers = RecentAnswers()
        metrics.pool_busy.read_from(lambda: {(pool,): seconds for pool, seconds in self.computed.read().items()})
        for pool, price in self._prices.items():
            metrics.worker_hour_cost.of(pool=pool).set(price.of(3600))

    def bill_pools(self, worker_time: WorkerTime) -> None:
        """The time that workers are there is what they cost; of it, requests account for what was computed."""
        prices = self._prices
        self._metrics.pool_cost.read_from(
            lambda: {(pool,): prices[pool].of(seconds) for pool, seconds in worker_time.read().items()}
        )

    def refused(self, error: ServalError, caller: Caller = ANONYMOUS) -> None:
        reason = error.limit if isinstance(error, LimitReached) else str(error.outcome)
        self._metrics.rejections.of(reason=reason, tenant=caller.tenant).inc()
        if isinstance(error, Shed):
            self.shed(error.reason, caller.tenant)

    def shed(self, reason: ShedReason, tenant: str) -> None:
        self._metrics.sheds.of(reason=str(reason), tenant=tenant).inc()

    def predicted_wait(self, seconds: float) -> None:
        self._metrics.predicted_wait.of().set(seconds)

    def placement(self, placement: Placement) -> None:
        placements, policy = self._metrics.placements, placement.policy
        placements.of(policy=policy, pool="decode", reason=str(placement.reason)).inc()
        placements.of(policy=policy, pool="prefill", reason=str(placement.prefill_reason)).inc()

    def retried(self, reason: str) -> None:
        self._metrics.retries.of(reason=reason).inc()

    def prefix_index(self, entries: int) -> None:
        self._metrics.prefix_index_entries.of().set(entries)

    def counts(self, running: int, waiting: int) -> None:
        self._running.set(running)
        self._waiting.set(waiting)

    def line_length(self, request: Request, change: int) -> None:
        self._metrics.queue_length.of(tenant=request.charge.tenant.name).inc(change)

    def tokens(self, request: Request, count: int, now: float) -> None:
        """`count` tokens of one engine step have come. Tokens of one step share the time since the last one."""
        timeline, metrics = request.timeline, self._of(request.charge.tenant.name)
        if timeline.last_token is None:
            timeline.first_token = now
            metrics.time_to_first_token.observe(now - timeline.arrived)
        else:
            self._inter_token_latency.observe((now - timeline.last_token) / count, count)
        timeline.last_token = now
        metrics.generation_tokens.inc(count)

    def attempt_ended(self, request: Request, timings: cluster_pb2.Timings, spent: Spent) -> None:
        """What only the workers know; `timings` as they came with the attempt's end. An attempt whose worker died has none: what
        it took is lost."""
        self._durations(request, timings)
        if spent is Spent.SERVED and not request.retries:
            self._note_speed(request, timings)
        worker = None if timings.prefilled_locally else request.asked_prefill
        request.figures.prefill_worker = worker.name if worker is not None else ""
        self.prefill_told(request, timings.prefill_busy_s)
        self._spend_prefill(request, spent)
        if request.decode is not None:
            owed_s = self.computed.on_told(request.decode, request.decode, timings.decode_busy_s)
            self._spend(request, "decode", owed_s, spent)

    def prefill_told(self, request: Request, seconds: float) -> None:
        """What the attempt took of prefill so far, told by its decode worker."""
        worker, new_s = request.asked_prefill, seconds - request.prefill_told_s
        if new_s > 0:
            request.prefill_told_s = seconds
            if worker is not None and request.decode is not None:
                new_s = self.computed.on_told(worker, request.decode, new_s)
            request.prefill_owed_s += new_s

    def attempt_lost(self, request: Request) -> None:
        """Its decode worker has died. What prefill took for it came with the first token, or is written off with the worker."""
        self._spend_prefill(request, Spent.LOST)

    def ended(self, request: Request, end: End) -> None:
        metrics, timeline, tenant = self._metrics, request.timeline, request.charge.tenant.name
        metrics.requests.of(outcome=str(end.outcome), tenant=tenant).inc()
        speed = _tokens_per_second(request)
        self._fill_figures(request, speed)
        if not end.outcome.is_success:
            return
        metrics.e2e_latency.of().observe((timeline.ended or timeline.arrived) - timeline.arrived)
        metrics.prompt_tokens.of(tenant=tenant).inc(len(request.spec.prompt))
        metrics.request_prompt_tokens.of().observe(len(request.spec.prompt))
        metrics.request_generation_tokens.of().observe(len(request.output))
        if speed is not None:
            metrics.time_per_output_token.of().observe(1 / speed if speed else 0.0)
            if speed:
                metrics.user_tokens_per_second.of(tenant=tenant).observe(speed)
        if self._objectives.are_kept(request.figures.ttft_s, 1 / speed if speed else None):
            metrics.requests_within_objectives.of().inc()

    def _durations(self, request: Request, timings: cluster_pb2.Timings) -> None:
        timeline = request.timeline
        in_line_s = (timeline.submitted or timeline.arrived) - timeline.arrived
        self._metrics.queue_time.of().observe(in_line_s + timings.queue_s + timings.prefill_queue_s)
        if timings.prefill_s:
            self._metrics.prefill_time.of().observe(timings.prefill_s)
        if timings.transfer_bytes:
            self._metrics.request_transfer_bytes.of().inc(timings.transfer_bytes)
            self._metrics.transfer_time.of().observe(timings.transfer_s)
            self._metrics.transfer_exposed_time.of().observe(timings.transfer_exposed_s)
        if timings.decode_s:
            self._metrics.decode_time.of().observe(timings.decode_s)

    def _spend_prefill(self, request: Request, spent: Spent) -> None:
        self._spend(request, "prefill", request.prefill_owed_s, spent)
        request.prefill_told_s = request.prefill_owed_s = 0.0

    def _spend(self, request: Request, pool: str, busy_s: float, spent: Spent) -> None:
        cost_usd = self._prices[pool].of(busy_s)
        if cost_usd:
            self._metrics.cost.of(pool=pool, tenant=request.charge.tenant.name, reason=str(spent)).inc(cost_usd)
            request.figures.cost_usd += cost_usd

    def _on_lost(self, pool: str, seconds: float) -> None:
        self._metrics.cost.of(pool=pool, tenant=NOBODY, reason=str(Spent.LOST)).inc(self._prices[pool].of(seconds))

    def _note_speed(self, request: Request, timings: cluster_pb2.Timings) -> None:
        timeline = request.timeline
        if timeline.first_token is not None and timeline.submitted is not None:
            speed = _tokens_per_second(request)
            self.answers.add(
                timeline.submitted,
                max(0.0, timeline.first_token - timeline.submitted - timings.queue_s),
                1 / speed if speed else None,
            )

    def _fill_figures(self, request: Request, speed: float | None) -> None:
        figures, timeline = request.figures, request.timeline
        if timeline.first_token is not None:
            figures.ttft_s = timeline.first_token - timeline.arrived
        figures.tokens_per_second = speed or 0.0
        if request.decode is not None:
            figures.decode_worker = request.decode.name

    def _of(self, tenant: str) -> _TenantMetrics:
        metrics = self._by_tenant.get(tenant)
        if metrics is None:
            metrics = self._by_tenant[tenant] = _TenantMetrics(
                self._metrics.time_to_first_token.of(tenant=tenant), self._metrics.generation_tokens.of(tenant=tenant)
            )
        return metrics


def _tokens_per_second(request: Request) -> float | None:
    """The first token apart; None for an answer of one, 0 where all came at once."""
    timeline = request.timeline
    if len(request.output) < 2 or timeline.first_token is None or timeline.last_token is None:
        return None
    seconds = timeline.last_token - timeline.first_token
    return (len(request.output) - 1) / seconds if seconds > 0 else 0.0
