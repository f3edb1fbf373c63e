"""Steps that were launched and are not read yet, and the blocks that they may still write to."""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from engine.batch import Span
from engine.launched import Launched
from engine.scheduler import Schedule
from engine.sequence import Sequence


@dataclass(frozen=True)
class Step:
    """One of them. `started_s` is time.monotonic() when it was decided."""

    schedule: Schedule
    launched: Launched
    started_s: float


class InFlight:
    """Oldest first. Belongs to the thread that steps, but for `keeps_blocks_of`, which any thread may ask."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def oldest(self) -> Step:
        return self._steps[0]

    @property
    def newest(self) -> Step:
        return self._steps[-1]

    def add(self, step: Step) -> None:
        self._count(step.schedule.spans, 1)
        self._steps.append(step)

    def pop(self) -> list[Sequence]:
        """The oldest is over. The sequences that were released meanwhile, whose blocks nothing writes to any more."""
        return self._count(self._steps.popleft().schedule.spans, -1)

    def abandon(self) -> tuple[list[Sequence], list[Sequence]]:
        """Waits until all are over, whatever they say. Whom they were for, and what `pop` returns."""
        concerned: dict[Sequence, None] = {}
        free: list[Sequence] = []
        while self._steps:
            self.oldest.launched.wait()
            concerned.update(dict.fromkeys(span.sequence for span in self.oldest.schedule.spans))
            free += self.pop()
        return list(concerned), free

    def keeps_blocks_of(self, sequence: Sequence) -> bool:
        """Marks a sequence as released. Its blocks can go at once, unless one of these steps may write to them: then `pop` tells
        when. Raises AssertionError when it was released already."""
        with self._lock:
            if sequence.released:
                raise AssertionError(f"{sequence.request_id} released twice")
            sequence.released = True
            return sequence.in_flight > 0

    def _count(self, spans: Iterable[Span], change: int) -> list[Sequence]:
        with self._lock:
            for span in spans:
                span.sequence.in_flight += change
            return [span.sequence for span in spans if span.sequence.released and not span.sequence.in_flight]
