"""The thread that owns the model."""

import logging
import threading
from collections.abc import Callable

from engine.engine import Engine
from engine.sequence import Sequence, SequenceUpdate

logger = logging.getLogger(__name__)

Publish = Callable[[list[SequenceUpdate]], None]
"""Called in the engine's thread with what a step did; must not block."""

BLOCKED_POLL_S = 0.05
"""How often a loop looks again whose sequences all wait for blocks that somebody else holds. A release wakes it at once."""

ABORT_TIMEOUT_S = 30.0
"""An abort takes effect at the next step's end; a step that takes longer than this is a wedged engine."""

FAILURES_UNTIL_UNHEALTHY = 3


class EngineLoop:
    """Steps an Engine in a thread of its own while there is work, and sleeps while there is none.

    A step that raises ends the sequences concerned with an error; the loop goes on. Three in a row make `is_healthy` False until
    a forward pass succeeds again: whoever watches the worker should replace it.
    """

    def __init__(self, engine: Engine, publish: Publish) -> None:
        self.engine = engine
        self._publish = publish
        self._failures = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def steps(self) -> int:
        """Forward passes so far; a watcher takes it for progress."""
        return self.engine.steps

    @property
    def is_healthy(self) -> bool:
        """The thread lives, steps do not keep failing, and nobody who shares the model is gone."""
        return self._thread.is_alive() and self._failures < FAILURES_UNTIL_UNHEALTHY and self.engine.failure is None

    def submit(self, sequence: Sequence) -> None:
        """See Engine.submit. From any thread."""
        self.engine.submit(sequence)

    def abort(self, request_id: str) -> None:
        """See Engine.abort. From any thread."""
        self.engine.abort(request_id)

    def close(self, timeout_s: float) -> bool:
        """Stops after the step in progress; True when the thread ended in time. Sequences still open get no further update."""
        self._closing = True
        self.engine.wakeup.set()
        self._thread.join(timeout_s)
        self.engine.close()
        return not self._thread.is_alive()

    def _run(self) -> None:
        self.engine.bind_thread()
        while not self._closing:
            self.engine.wakeup.clear()
            steps = self.engine.steps
            updates = self._step()
            if updates:
                self._deliver(updates)
            if self.engine.steps == steps and not updates:
                self.engine.wakeup.wait(None if self.engine.is_idle else BLOCKED_POLL_S)

    def _step(self) -> list[SequenceUpdate]:
        steps = self.engine.steps
        try:
            updates = self.engine.step()
        except Exception as error:
            self._failures += 1
            logger.exception("an engine step failed")
            return self.engine.fail(error)
        if self.engine.steps > steps:
            self._failures = 0
        return updates

    def _deliver(self, updates: list[SequenceUpdate]) -> None:
        try:
            self._publish(updates)
        except Exception:
            logger.exception("updates of %d sequences could not be delivered", len(updates))
