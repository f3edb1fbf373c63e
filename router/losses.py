"""What becomes of a request whose worker is lost: when it goes on, and whether it may. Pure decisions.

A worker that dies takes innocents along, so what was open there says little about who killed it. What says more is progress: a
request that kills does so again at the same place, before it has brought another token. Hence the rule:

- A death counts against a request until its next token clears it.
- Two deaths without a token between them, and nobody else on the second worker: it is poison, and refused.
- In company it may have been unlucky twice: it is tried again apart, one suspect after the other; whose worker dies again is
  poison.

So poison takes two workers, three where it had company, and an innocent pays for no more than time.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

POISON = "workers died on this request one after another, and it is not tried on yet another"
"""What the client is told."""

FATAL_DEATHS = 2
"""Workers that died on a request in a row."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Before the second retry, and before the last: doubled from one to the other. The first retry goes at once: its client waits in
the middle of a sentence, and the router's line keeps a crowd off the other workers."""


class Verdict(Enum):
    """On one request of a worker that died."""

    GO_ON = auto()
    APART = auto()
    """It goes on when no other suspect is being tried."""
    POISON = auto()


@dataclass
class Suspicion:
    """What speaks against one request."""

    deaths: int = 0
    """Workers that died on it since its last token."""
    is_apart: bool = False
    """It is being tried while no other suspect is."""

    def clear(self) -> None:
        """It has brought a token."""
        self.deaths, self.is_apart = 0, False


def judge(dead: Sequence[Suspicion]) -> list[Verdict]:
    """Counts a worker's death against everybody who was there, and says what becomes of each."""
    for one in dead:
        one.deaths += 1
    verdicts = []
    for one in dead:
        if one.deaths < FATAL_DEATHS:
            verdicts.append(Verdict.GO_ON)
        else:
            verdicts.append(Verdict.POISON if one.is_apart or len(dead) == 1 else Verdict.APART)
    return verdicts


def pause_s(retry: int, left_s: float, draw: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before retry number `retry` (from 1): exponential, jittered, at most half of what is left of the deadline."""
    if retry <= 1:
        return 0.0
    longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (retry - 2))
    return min(draw(0.5, 1.0) * longest_s, max(0.0, left_s) / 2)


Suspect = TypeVar("Suspect")


class Trials(Generic[Suspect]):
    """Suspects, one tried at a time. `admit` is called with whoever's turn it is."""

    def __init__(self, admit: Callable[[Suspect], None]) -> None:
        self._admit = admit
        self._tried: Suspect | None = None
        self._waiting: deque[Suspect] = deque()

    def __len__(self) -> int:
        """With the one that is tried."""
        return len(self._waiting) + (self._tried is not None)

    def enter(self, suspect: Suspect) -> None:
        self._waiting.append(suspect)
        self._next()

    def leave(self, suspect: Suspect) -> None:
        """It is cleared, or has ended. Does nothing to one that is not here."""
        if self._tried is suspect:
            self._tried = None
        elif suspect in self._waiting:
            self._waiting.remove(suspect)
        self._next()

    def _next(self) -> None:
        if self._tried is None and self._waiting:
            self._tried = self._waiting.popleft()
            self._admit(self._tried)
