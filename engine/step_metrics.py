"""What one step of the engine took, told to the metrics and to the sequences that it was taken for."""

from engine.kv_cache import KVCache
from engine.models.expert_tally import ExpertTally
from engine.scheduler import Schedule
from telemetry.metrics import Metrics
from telemetry.read_counter import Values


class StepMetrics:
    """Called once after each step."""

    def __init__(self, metrics: Metrics, kv_cache: KVCache, expert_tally: ExpertTally | None) -> None:
        """`expert_tally`: the model's, read whenever somebody asks for the metrics, not in any step."""
        self._metrics = metrics
        self._kv_cache = kv_cache
        self.busy_s = 0.0
        """Time of steps that computed something."""
        if expert_tally is not None:
            _expose(metrics, expert_tally)

    def observe(self, schedule: Schedule, started_s: float, step_s: float, num_running: int, num_waiting: int) -> None:
        """`started_s` is time.monotonic() at the step's start, `step_s` how long it took."""
        metrics, cache = self._metrics, self._kv_cache
        metrics.requests_running.of().set(num_running)
        metrics.requests_waiting.of().set(num_waiting)
        metrics.kv_cache_usage.of().set(cache.usage)
        for state, count in (("free", cache.num_free), ("cached", cache.num_cached), ("held", cache.num_held)):
            metrics.kv_blocks.of(state=state).set(count)
        if schedule.preemptions:
            metrics.preemptions.of().inc(schedule.preemptions)
        if schedule.spans:
            metrics.engine_steps.of().inc()
            metrics.engine_step_time.of().observe(step_s)
            metrics.engine_busy.of().inc(step_s)
            self.busy_s += step_s
            metrics.engine_batch_tokens.of().observe(_share_out(schedule, started_s, step_s))


def _share_out(schedule: Schedule, started_s: float, step_s: float) -> int:
    """Adds to each sequence its share of the step by its tokens in it; returns how many tokens those were."""
    num_tokens = sum(span.length for span in schedule.spans)
    for span in schedule.spans:
        sequence, share_s = span.sequence, step_s * span.length / num_tokens
        sequence.busy_s += share_s
        if sequence.first_token_s is None or sequence.first_token_s >= started_s:
            sequence.prefill_busy_s += share_s
    return num_tokens


def _expose(metrics: Metrics, tally: ExpertTally) -> None:
    def assignments() -> Values:
        work = tally.read()
        return {("real",): work.real, ("zero",): work.zero}

    metrics.moe_assignments.read_from(assignments)
    metrics.moe_product_rows.read_from(lambda: {(): tally.read().product_rows})
