"""How fast an engine has been lately: what a worker tells routers, so that they can predict."""

import time
from collections.abc import Callable

from engine.scheduler import Schedule
from telemetry.recent import RecentLine, RecentMean, RecentRate

STALE_S = 30.0
"""A figure that nothing has renewed for so long is not told any more. Otherwise a worker that was slow once, and is given nothing
for it, would be thought slow for ever."""

LEAST_SPREAD = 0.5
"""Tokens. A standard deviation of the steps' sizes below which their times tell nothing of what a token costs."""


class RecentSteps:
    """Written by the thread that steps, read by any: each figure is one float, at worst a step old. The first step of either kind
    does not count: it pays for what later ones find in place."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefill = RecentRate()
        self._decode = RecentMean()
        self._decode_cost = RecentLine()
        self._prefill_at: float | None = None
        self._decode_at: float | None = None

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens per second of the time spent on them. 0: none were computed lately."""
        return self._prefill.per_second if self._is_recent(self._prefill_at) else 0.0

    @property
    def step_s(self) -> float:
        """How long a running answer waits for its next token: a step, or less where guesses make it bring several. 0: there was no
        such step lately."""
        return self._decode.value if self._is_recent(self._decode_at) else 0.0

    @property
    def decode_cost(self) -> tuple[float, float]:
        """What a step of answers alone takes: seconds whatever is in it, and seconds per token. While all had about as many tokens
        one more is said to cost nothing: only trying it tells."""
        return self._decode_cost.fit(assumed_slope=0.0, spread=LEAST_SPREAD)

    def observe(self, schedule: Schedule, step_s: float) -> None:
        """One step that was published, maybe an empty one; its time is split over its sequences by their tokens in it."""
        num_tokens = sum(span.length for span in schedule.spans)
        given = sum(span.length for span in schedule.spans if span.start < span.sequence.num_given - 1)
        if given:
            if self._prefill_at is not None:
                self._prefill.add(given, step_s * given / num_tokens)
            self._prefill_at = self._clock()
        if given < num_tokens:
            if self._decode_at is not None:
                self._decode.add(step_s / _tokens_each(schedule))
                if not given:
                    self._decode_cost.add(num_tokens, step_s)
            self._decode_at = self._clock()

    def _is_recent(self, at: float | None) -> bool:
        return at is not None and self._clock() - at < STALE_S


def _tokens_each(schedule: Schedule) -> float:
    """How many tokens the step brought each running answer."""
    decodes = [span for span in schedule.spans if span.start >= span.sequence.num_given - 1]
    return sum(max(1, len(span.sequence.tokens) - span.known_end) for span in decodes) / len(decodes)
