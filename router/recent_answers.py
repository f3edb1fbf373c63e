"""How fast the last answers were."""

import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import NamedTuple

LEAST_ANSWERS = 20
"""Fewer have no 95th percentile."""
REMEMBERED = 4096


class RecentAnswers:
    """Event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: deque[_Answer] = deque(maxlen=REMEMBERED)

    def add(self, began: float, ttft_s: float, tpot_s: float | None) -> None:
        """It ends now. `began`: when it was sent to its workers, on the clock; `tpot_s`: None for an answer of one token."""
        self._answers.append(_Answer(began, self._clock(), ttft_s, tpot_s))

    def percentiles(
        self, window_s: float, ttft_since: float = -inf, tpot_since: float = -inf
    ) -> tuple[float | None, float | None]:
        """95th of both, of answers that ended within the window, and began since then."""
        recent = [one for one in self._answers if one.ended >= self._clock() - window_s]
        ttfts = [one.ttft_s for one in recent if one.began >= ttft_since]
        return _p95(ttfts), _p95([one.tpot_s for one in recent if one.tpot_s is not None and one.began >= tpot_since])


class _Answer(NamedTuple):
    began: float
    ended: float
    ttft_s: float
    tpot_s: float | None


def _p95(values: list[float]) -> float | None:
    return sorted(values)[int(0.95 * (len(values) - 1))] if len(values) >= LEAST_ANSWERS else None
