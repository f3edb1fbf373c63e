"""How fast an engine has been lately: what a worker tells routers, so that they can predict."""

from engine.scheduler import Schedule
from telemetry.recent import RecentMean, RecentRate


class RecentSteps:
    """Written by the thread that steps, read by any: each figure is one float, at worst a step old."""

    def __init__(self) -> None:
        self._prefill = RecentRate()
        self._decode = RecentMean()

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens per second of the time spent on them. 0: none were computed yet."""
        return self._prefill.per_second

    @property
    def step_s(self) -> float:
        """How long a step takes that brings running answers their next token. 0: there was none yet."""
        return self._decode.value

    def observe(self, schedule: Schedule, step_s: float) -> None:
        """One step, maybe an empty one; its time is split over its sequences by their tokens in it."""
        num_tokens = sum(span.length for span in schedule.spans)
        given = sum(span.length for span in schedule.spans if span.start < span.sequence.num_given - 1)
        if given:
            self._prefill.add(given, step_s * given / num_tokens)
        if given < num_tokens:
            self._decode.add(step_s)
