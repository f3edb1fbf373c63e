"""A request's figures, taken where they are known, into telemetry's metrics."""

from protocol import cluster_pb2
from protocol.errors import ServalError
from router.placement import Placement
from router.request import End, Request
from telemetry.metrics import Metrics


class Accounting:
    """Every accepted request reaches `ended` exactly once; every refused one reaches `refused`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Children are looked up once: these are touched for every token.
        self._inter_token_latency = metrics.inter_token_latency.of()
        self._generation_tokens = metrics.generation_tokens.of()

    def refused(self, error: ServalError) -> None:
        self._metrics.rejections.of(reason=str(error.outcome)).inc()

    def placement(self, placement: Placement) -> None:
        placements, policy = self._metrics.placements, placement.policy
        placements.of(policy=policy, pool="decode", reason=str(placement.reason)).inc()
        placements.of(policy=policy, pool="prefill", reason=str(placement.prefill_reason)).inc()

    def prefix_index(self, entries: int) -> None:
        self._metrics.prefix_index_entries.of().set(entries)

    def counts(self, running: int, waiting: int) -> None:
        self._metrics.requests_running.of().set(running)
        self._metrics.requests_waiting.of().set(waiting)

    def tokens(self, request: Request, count: int, now: float) -> None:
        """`count` tokens of one engine step have come. Tokens of one step share the time since the last one."""
        timeline = request.timeline
        if timeline.last_token is None:
            timeline.first_token = now
            self._metrics.time_to_first_token.of().observe(now - timeline.arrived)
        else:
            for _ in range(count):
                self._inter_token_latency.observe((now - timeline.last_token) / count)
        timeline.last_token = now
        self._generation_tokens.inc(count)

    def worker_timings(self, timings: cluster_pb2.Timings) -> None:
        """What only the workers know; `timings` as they came with the request's end."""
        self._metrics.queue_time.of().observe(timings.queue_s + timings.prefill_queue_s)
        if timings.prefill_s:
            self._metrics.prefill_time.of().observe(timings.prefill_s)
        if timings.transfer_bytes:
            self._metrics.transfer_time.of().observe(timings.transfer_s)
        if timings.decode_s:
            self._metrics.decode_time.of().observe(timings.decode_s)

    def ended(self, request: Request, end: End) -> None:
        metrics, timeline = self._metrics, request.timeline
        metrics.requests.of(outcome=str(end.outcome)).inc()
        if not end.outcome.is_success:
            return
        metrics.e2e_latency.of().observe((timeline.ended or timeline.arrived) - timeline.arrived)
        metrics.prompt_tokens.of().inc(len(request.spec.prompt))
        metrics.request_prompt_tokens.of().observe(len(request.spec.prompt))
        metrics.request_generation_tokens.of().observe(len(request.output))
        if len(request.output) > 1 and timeline.first_token is not None and timeline.last_token is not None:
            per_token_s = (timeline.last_token - timeline.first_token) / (len(request.output) - 1)
            metrics.time_per_output_token.of().observe(per_token_s)
            if per_token_s > 0:
                metrics.user_tokens_per_second.of().observe(1 / per_token_s)
