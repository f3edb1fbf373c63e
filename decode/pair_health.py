"""Whether prompts are asked of a prefill worker whose transfers here have failed: avoided after a few failures, and probed back.

Pure decisions. One failure avoids nobody, and old ones fade: a transient error must not shut out a healthy pair. While a pair is
avoided no prompt is risked on it; a probe of its own tells when it works again.
"""

import random
from collections.abc import Callable

HALF_LIFE_S = 10.0
"""A failure counts half after so long."""

AVOIDED_FROM = 1.5
"""So many failures, faded, avoid the pair: two within six seconds."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Before the first probe, and between two at most: each that fails doubles the pause, jittered."""

MOST_PROBES = 20
"""In a row without success: then the worker has long been replaced by another life, or is left to the next prompt."""


class PairHealth:
    """This decode worker and one life of a prefill worker. Times are the caller's, in seconds."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self._score = 0.0
        self._scored_at = 0.0
        self._probes = 0
        self._probe_at: float | None = None

    @property
    def is_avoided(self) -> bool:
        return self._probe_at is not None

    @property
    def is_hopeless(self) -> bool:
        return self._probes >= MOST_PROBES

    def is_due(self, now: float) -> bool:
        """It is time for a probe."""
        return self._probe_at is not None and now >= self._probe_at

    def is_forgotten(self, now: float) -> bool:
        """Nothing is held against it any more."""
        return not self.is_avoided and self._faded(now) < 0.1

    def failed(self, now: float) -> None:
        """A prompt's transfer failed, for a reason that lies with the pair."""
        self._score, self._scored_at = self._faded(now) + 1.0, now
        if not self.is_avoided and self._score >= AVOIDED_FROM:
            self._pause(now)

    def probe_failed(self, now: float) -> None:
        self._probes += 1
        self._pause(now)

    def worked(self) -> None:
        """A transfer went well, a prompt's or a probe's."""
        self._score, self._probes, self._probe_at = 0.0, 0, None

    def _faded(self, now: float) -> float:
        return self._score * float(0.5 ** ((now - self._scored_at) / HALF_LIFE_S))

    def _pause(self, now: float) -> None:
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._probes)
        self._probe_at = now + self._draw(0.5, 1.0) * longest_s
