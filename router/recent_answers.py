"""How fast the last answers were."""

import time
from collections import deque
from collections.abc import Callable

LEAST_ANSWERS = 20
"""Fewer have no 95th percentile."""
REMEMBERED = 4096


class RecentAnswers:
    """Event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: deque[tuple[float, float, float | None]] = deque(maxlen=REMEMBERED)

    def add(self, ttft_s: float, tpot_s: float | None) -> None:
        """`tpot_s`: None for an answer of one token."""
        self._answers.append((self._clock(), ttft_s, tpot_s))

    def percentiles(self, window_s: float) -> tuple[float | None, float | None]:
        """95th of both, of answers that ended within the window."""
        since = self._clock() - window_s
        recent = [(ttft_s, tpot_s) for at, ttft_s, tpot_s in self._answers if at >= since]
        return _p95([ttft_s for ttft_s, _ in recent]), _p95([tpot_s for _, tpot_s in recent if tpot_s is not None])


def _p95(values: list[float]) -> float | None:
    return sorted(values)[int(0.95 * (len(values) - 1))] if len(values) >= LEAST_ANSWERS else None
