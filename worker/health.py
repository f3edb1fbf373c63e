"""Whether a worker makes progress: its engine by steps, its transport by writes. Real work is proof; where there is none, a real
step of one token and a real write of one word are made now and then.

A worker that fails says so to whoever looks after it (`why_not` through /health, Ray's check, or the process's own end), and is
replaced. A process that stands still as a whole cannot say anything: its launcher, Kubernetes or Ray find that it does not answer.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from enum import Enum, auto

from engine.engine import Engine
from engine.sequence import Sequence, SequenceUpdate
from protocol.errors import ServalError
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from worker.config import HealthConfig

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks."""

PROBE = "health-probe"
"""The sequence's name to the engine; requests are numbers there."""


class Look(Enum):
    """What to do about an engine."""

    FINE = auto()
    PROBE = auto()
    """It has had nothing to do for a while: give it a step."""
    STUCK = auto()


class Progress:
    """An engine by what is seen of it from outside; pure. Time is counted in looks: while this process stood still, nobody else in
    it could make progress either."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._steps = -1
        self._still_s = 0.0
        """Without a step."""

    def look(self, elapsed_s: float, steps: int, running: int, waiting: int, is_probing: bool) -> Look:
        """`elapsed_s` since the last look. `running` and `waiting` count the probe too."""
        if steps != self._steps:
            self._steps, self._still_s = steps, 0.0
            return Look.FINE
        self._still_s += elapsed_s
        if not running and not waiting and not is_probing:
            return Look.PROBE if self._still_s >= self._config.period_s else Look.FINE
        # Who waits may wait for KV blocks that requests without a place in the batch hold, for as long as their prompts take.
        is_blocked = not running and waiting > is_probing
        limit_s = self._config.blocked_timeout_s if is_blocked else self._config.step_timeout_s
        return Look.STUCK if self._still_s >= self._config.period_s + limit_s else Look.FINE


class Health:
    """Lives on the event loop, but for `on_updates`, which belongs in the engine's publish. `transfer_proofs` counts what the
    transport has done so far, real writes and writes to itself."""

    def __init__(
        self, engine: Engine, submit: Callable[[Sequence], None], transfer_proofs: Callable[[], int], config: HealthConfig,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._submit = submit
        self._transfer_proofs = transfer_proofs
        self._config = config
        self._metrics = metrics
        self._progress = Progress(config)
        self._is_probing = False
        self._proofs = -1
        self._unproved_s = 0.0
        self.why_not: str | None = None
        """Why this worker should be replaced; None: it goes on."""

    async def run(self) -> None:
        """Looks, until cancelled."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            now = loop.time()
            elapsed_s, looked_at = min(now - looked_at, 2 * LOOK_S), now
            self.why_not = self._look_at_engine(elapsed_s) or self._look_at_transfer(elapsed_s)

    def on_updates(self, updates: Iterable[SequenceUpdate]) -> None:
        """The results of one engine step."""
        for update in updates:
            if update.request_id == PROBE and update.finish is not None:
                self._engine.release(update.sequence)
                self._engine.probe_s += update.sequence.busy_s  # nobody pays for it
                self._is_probing = False
                if update.error is None:
                    self._count("engine", "passed")

    def _look_at_engine(self, elapsed_s: float) -> str | None:
        engine = self._engine
        look = self._progress.look(elapsed_s, engine.steps, engine.num_running, engine.num_waiting, self._is_probing)
        if look is Look.PROBE:
            self._probe()
        if look is not Look.STUCK:
            return None
        if self.why_not is None:
            self._count("engine", "failed")
        return "the engine has work and makes no step"

    def _probe(self) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        self._is_probing = True
        try:
            self._submit(Sequence(PROBE, [0], params))
        except ServalError as error:
            self._is_probing = False
            logger.warning("the engine could not be given a step to prove itself: %s", error)

    def _look_at_transfer(self, elapsed_s: float) -> str | None:
        proofs = self._transfer_proofs()
        if proofs != self._proofs:
            if self._proofs >= 0:
                self._count("transfer", "passed")
            self._proofs, self._unproved_s = proofs, 0.0
            return None
        self._unproved_s += elapsed_s
        if self._unproved_s < self._config.transfer_timeout_s:
            return None
        if self.why_not is None:
            self._count("transfer", "failed")
        return "the transport moves nothing, not even to itself"

    def _count(self, check: str, result: str) -> None:
        self._metrics.health_checks.of(check=check, result=result).inc()
