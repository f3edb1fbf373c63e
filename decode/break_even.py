"""How long an uncached rest of a prompt may be for the decode worker to compute it by itself: learned from what both ways took.

Both ways cost a fixed part and a part per token. Elsewhere the fixed part is large (a call, a queue, a transfer to wait for);
here it is small, but a token costs more: while it is computed, every answer that runs here waits for its own next token. A second
of that counts as one second of the prompt's own waiting.
"""

import logging
from typing import Literal

from telemetry.recent import RecentLine, RecentMean

logger = logging.getLogger(__name__)

Here = Literal["short", "trial"]
"""Why a prompt is computed here; part of `serval_local_prefills_total{reason}`."""

FEWEST = 6
"""Observations of each way before anything follows from them."""

PATIENCE, PATIENCE_WHILE_GUESSING, PATIENCE_WHILE_CURIOUS = 64, 32, 8
"""After so many prompts that went the same way the next suitable one is tried the other way, so that both stay measured: sooner
while what a token costs here is a guess for want of different lengths, and soonest while hardly anything is known, or while it
seems to pay beyond what was ever tried."""

REVIEW_EVERY = 8
"""Observations between two looks at the threshold."""

HYSTERESIS = 0.25
"""The threshold stays while the new one differs by a smaller share."""

OUTLIER = 4.0
"""An observation counts for at most so many times what was predicted: one connection made, one page fault, is no trend."""


class BreakEven:
    """Lives on the event loop. `most_tokens` bounds the threshold and all trials: a prompt of one chunk lengthens one step."""

    def __init__(self, setting: int | Literal["auto"], block_tokens: int, most_tokens: int) -> None:
        self._learns = setting == "auto"
        self._block = block_tokens
        self._most = max(block_tokens, most_tokens)
        self.max_tokens: int = block_tokens if setting == "auto" else setting
        """The longest uncached rest that is computed here."""
        self._here = RecentLine()
        self._elsewhere = RecentLine()
        self._running = RecentMean(remembered=64)
        self._longest_here = 0.0
        self._observations = 0
        self._shorts_since_trial = 0
        self._longs_since_trial = 0
        self._would_grow = False

    def choose(self, uncached_tokens: int) -> Here | None:
        """Why this prompt is to be computed here, or None: elsewhere. Ask once per prompt: it counts them for trials."""
        is_short = uncached_tokens <= self.max_tokens
        if not self._learns:
            return "short" if is_short else None
        if is_short:
            self._shorts_since_trial += 1
            if self._shorts_since_trial <= (PATIENCE if self._elsewhere.weight >= FEWEST else PATIENCE_WHILE_CURIOUS):
                return "short"
            self._shorts_since_trial = 0
            return None
        self._shorts_since_trial = 0  # this one measures the way elsewhere
        self._longs_since_trial += 1
        if uncached_tokens > self._longest_trial or self._longs_since_trial <= self._patience_with_longs:
            return None
        self._longs_since_trial = 0
        return "trial"

    def observe_here(self, uncached_tokens: int, seconds: float, running: int) -> None:
        """From handing a prompt to the engine to its first token, and how many other answers ran meanwhile (below 0 counts as
        none: an answer of one token is gone from the engine when it is observed)."""
        _observe(self._here, uncached_tokens, seconds, self._assumed_here)
        self._running.add(max(0, running))
        self._longest_here = max(uncached_tokens, self._longest_here * 0.99)
        self._review()

    def observe_elsewhere(self, uncached_tokens: int, seconds: float, running: int) -> None:
        """From the call of a prefill worker to all KV verified."""
        _observe(self._elsewhere, uncached_tokens, seconds, 0.0)
        self._running.add(running)
        self._review()

    @property
    def _patience_with_longs(self) -> int:
        if self._would_grow or self._here.weight < FEWEST:
            return PATIENCE_WHILE_CURIOUS
        return PATIENCE if self._here.deviation_x >= self._block else PATIENCE_WHILE_GUESSING

    @property
    def _longest_trial(self) -> int:
        return min(self._most, max(4 * self._block, 2 * self.max_tokens))

    @property
    def _assumed_here(self) -> float:
        """Where all were about as long, all of it was the tokens' doing: the careful guess."""
        return self._here.mean_y / self._here.mean_x if self._here.mean_x else 0.0

    def _review(self) -> None:
        self._observations += 1
        if not self._learns or self._observations % REVIEW_EVERY:
            return
        if min(self._here.weight, self._elsewhere.weight) < FEWEST:
            return
        crossing = self._crossing()
        wanted = self._bounded(crossing)
        self._would_grow = wanted < min(crossing, self._most) - self._block
        if abs(wanted - self.max_tokens) >= max(self._block, HYSTERESIS * self.max_tokens):
            self.max_tokens = wanted

    def _crossing(self) -> float:
        """Tokens up to which it costs less here."""
        fixed_here, slope_here = self._here.fit(self._assumed_here, spread=self._block)
        fixed_elsewhere, slope_elsewhere = self._elsewhere.fit(0.0, spread=self._block)
        logger.debug(
            "a prompt takes %.4f s + %.6f s per token here, %.4f s + %.6f s elsewhere; %.1f answers run",
            fixed_here, slope_here, fixed_elsewhere, slope_elsewhere, self._running.value,
        )  # fmt: skip
        slope = slope_here * (1 + self._running.value) - slope_elsewhere
        saved = fixed_elsewhere - fixed_here
        if slope <= 0:
            return float(self._most)
        return max(0.0, saved) / slope

    def _bounded(self, tokens: float) -> int:
        """Whole blocks, from one to the cap; at most twice what was there before, and what was ever computed here lately."""
        known = 2 * max(self._block, min(self.max_tokens, self._longest_here))
        blocks = int(min(tokens, self._most, max(known, self.max_tokens))) // self._block
        return max(1, blocks) * self._block


def _observe(line: RecentLine, tokens: int, seconds: float, assumed_slope: float) -> None:
    if line.weight >= FEWEST:
        fixed, slope = line.fit(assumed_slope, spread=1.0)
        seconds = min(seconds, OUTLIER * (fixed + slope * tokens))
    line.add(tokens, seconds)
