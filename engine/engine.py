"""The engine: a step is schedule, launch, publish. One thread steps; any thread submits, aborts and releases."""

import logging
import threading
import time
from collections import deque
from pathlib import Path

import torch

from engine.answered import Answered, take_tokens
from engine.config import EngineConfig
from engine.decode_graph.choice import make_step_graphs
from engine.ending import Ending, ending_of
from engine.forward_pass import ForwardPass
from engine.grammar import Grammars
from engine.in_flight import InFlight, Step
from engine.kv_cache import KVCache
from engine.kv_pool import KVPool
from engine.launch_thread import LaunchThread
from engine.loading import load_model
from engine.models.base import Model, OnLayer
from engine.models.checkpoint import Progress
from engine.models.config import ModelConfig
from engine.recent_steps import RecentSteps
from engine.sampler import Sampler
from engine.scheduler import Schedule, Scheduler
from engine.sequence import Sequence, SequenceUpdate
from engine.speculation.choice import make_speculation
from engine.split.loading import load_split_model
from engine.split.model import SplitModel
from engine.step_metrics import StepMetrics
from engine.steps_ahead import StepsAhead
from engine.submission import check_submission
from protocol.errors import ServalError
from telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class EngineFailed(ServalError):
    """A step raised: a bug of ours, or the device failed."""


class Engine:
    """One model, its KV pool and the sequences being computed. Used alike by prefill and decode workers.

    `submit`, `abort`, `release` and everything of `kv_cache` may be called from any thread; `step` and `fail` by one thread
    only. `wakeup` is set whenever a sleeping stepper should look again.
    """

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        config: EngineConfig,
        grammars: Grammars,
        metrics: Metrics,
        *,
        max_model_len: int,
        on_layer: OnLayer | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self.config = config
        self.max_model_len = max_model_len
        self.on_layer = on_layer
        self.kv_cache = KVCache(pool.num_blocks, pool.block_size, prefix_cache=config.prefix_cache, metrics=metrics)
        self._split = model if isinstance(model, SplitModel) else None
        if self._split is not None:
            self._split.watch(self.kv_cache)
        self.probe_s = 0.0
        """Of its sequences' shares, those of probes, as whoever sends them says."""
        self.wakeup = threading.Event()
        self.steps = 0
        """Forward passes whose results are known."""
        self.recent = RecentSteps()
        self._grammars = grammars
        self._attention = model.attention_over(pool)
        self._speculation = make_speculation(config, model, pool, self._attention, max_model_len, self.recent, metrics)
        sampler = Sampler(model.config.eos_token_ids, model.config.vocab_size, grammars)
        thread = LaunchThread(config.threads) if self._may_go_ahead and model.device.type == "cpu" else None
        graphs = None if on_layer is not None else make_step_graphs(config, model, pool, self._attention, max_model_len)
        self._forward_pass = ForwardPass(model, pool, self._attention, sampler, self._speculation, thread, graphs)
        self._scheduler = Scheduler(
            self.kv_cache,
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            choose_drafts=None if self._speculation is None else self._speculation.choose,
        )
        self._metrics = StepMetrics(metrics, self.kv_cache, model.expert_tally)
        self._inbox: deque[Sequence | str] = deque()
        self._endings: list[Ending] = []
        self._ahead = StepsAhead(self._scheduler, self.kv_cache, max_model_len)
        self._in_flight = InFlight()
        self._launching: list[Sequence] = []
        """Whom a step is launched for, until it is in flight."""
        self._read_s = 0.0
        """When the last step was read."""

    @classmethod
    def load(
        cls,
        folder: Path,
        config: EngineConfig,
        metrics: Metrics,
        *,
        progress: Progress | None = None,
        on_layer: OnLayer | None = None,
    ) -> "Engine":
        """Reads the model from a Hugging Face folder and takes the KV pool. Raises ConfigError, one line, when it cannot.

        With tensor_parallel_size it starts the processes that share the model: `close` ends them, and so does this one's end.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        load = load_model if config.tensor_parallel_size == 1 else load_split_model
        model, pool, max_model_len = load(folder, config, progress)
        shape = model.config
        grammars = Grammars(folder / "tokenizer.json", shape.vocab_size, shape.eos_token_ids, metrics, threads=config.threads)
        grammars.prepare()
        return cls(model, pool, config, grammars, metrics, max_model_len=max_model_len, on_layer=on_layer)

    @property
    def model_config(self) -> ModelConfig:
        return self.model.config

    @property
    def failure(self) -> str | None:
        """Why nothing can be computed here any more: a process that shared the model is gone. None: nothing is wrong."""
        return None if self._split is None else self._split.failure

    def close(self) -> None:
        """Ends the processes that share the model. Nothing is computed any more."""
        if self._split is not None:
            self._split.close()

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences submitted and not yet computed."""
        return len(self._scheduler.waiting) + len(self._inbox)

    @property
    def busy_s(self) -> float:
        """Seconds so far of steps that computed something for somebody: what its sequences' shares add up to."""
        return self._metrics.busy_s - self.probe_s

    @property
    def is_idle(self) -> bool:
        """No sequence runs or waits. Sequences that ended may still hold blocks until they are released."""
        return not (self._inbox or self._scheduler.running or self._scheduler.waiting or self._in_flight)

    # ---- from any thread

    def prepare(self, sequence: Sequence) -> None:
        """Compiles its grammar: what may take longer than an event loop should stand still. Raises InvalidRequest."""
        if sequence.params.grammar and sequence.matcher is None:
            sequence.matcher = self._grammars.matcher(sequence.params.grammar)

    def submit(self, sequence: Sequence) -> None:
        """Hands a sequence over (see Sequence), prepared or not. Raises InvalidRequest when it can never be computed."""
        check_submission(sequence, self.kv_cache, self.max_model_len)
        self.prepare(sequence)
        self._inbox.append(sequence)
        self.wakeup.set()

    def abort(self, request_id: str) -> None:
        """Ends a sequence at the next step with finish "aborted". One that has ended already, or is unknown, is left alone."""
        self._inbox.append(request_id)
        self.wakeup.set()

    def release(self, sequence: Sequence) -> None:
        """Gives back an ended sequence's blocks, into the prefix cache where they are full. Once per submitted sequence."""
        if not self._in_flight.keeps_blocks_of(sequence):
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.kv_cache.commit(sequence.tokens, sequence.blocks, sequence.num_computed)
        self.kv_cache.release(sequence.give_up_blocks())
        self.wakeup.set()

    # ---- from the thread that owns the model

    def bind_thread(self) -> None:
        """Makes the calling thread compute with the configured number of threads (OpenMP keeps that number per thread)."""
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)

    def step(self) -> list[SequenceUpdate]:
        """The results of one forward pass: what it did to each sequence. Empty when there is nothing to do.

        Steps after it may have been launched before it is read, see EngineConfig.steps_in_flight.
        """
        started_s = time.monotonic()
        with torch.inference_mode():
            schedule = self._launch(started_s)
            published: list[SequenceUpdate] = []
            if self._in_flight:
                step = self._in_flight.oldest
                schedule, started_s = step.schedule, max(step.started_s, self._read_s)
                published = self._publish(step)
            updates = [*self._publish_endings(), *published]  # last: a step that fails takes no ending with it
        self._read_s = time.monotonic()
        self._metrics.observe(schedule, started_s, self._read_s - started_s, self.num_running, self.num_waiting)
        self.recent.observe(schedule, self._read_s - started_s)
        return updates

    def fail(self, error: Exception) -> list[SequenceUpdate]:
        """After `step` raised: ends the sequences of the steps in flight, or all where there is none. The others go on."""
        stepped, released = self._in_flight.abandon()
        for sequence in released:
            self._give_back(sequence)
        concerned, self._launching = {*stepped, *self._launching}, []
        failure = _failure(error)
        for sequence in self._everyone():
            if sequence in concerned or not concerned:
                self._scheduler.remove(sequence)
                self._endings.append(Ending(sequence, "error", failure))
        return self._publish_endings()

    def _launch(self, now_s: float) -> Schedule:
        """Launches steps until so many are in flight, or the next one cannot be decided. Returns what was decided last."""
        if self.config.check_integrity:
            self.kv_cache.check_integrity()
        self._read_inbox()
        while True:
            newest = self._in_flight.newest.launched if self._in_flight else None
            schedule = self._scheduler.schedule() if newest is None else self._ahead.schedule(newest)
            self._endings += schedule.endings
            if not schedule.spans:
                return schedule
            self._launching = [span.sequence for span in schedule.spans]
            for sequence in self._launching:
                sequence.started_s = sequence.started_s or now_s
            launched = self._forward_pass.launch(schedule.spans, self.on_layer, newest)
            self._in_flight.add(Step(schedule, launched, now_s))
            self._launching = []
            if not self._may_go_ahead or len(self._in_flight) >= self.config.steps_in_flight:
                return schedule

    @property
    def _may_go_ahead(self) -> bool:
        """With guesses only a step's results tell how long the sequences are; and who sends layers away sends them in order. A
        model that embeds a token by those before it must know them."""
        looks_back = self._speculation is not None or self.model.config.history > 0
        return self.config.steps_in_flight > 1 and not looks_back and self.on_layer is None

    def _publish(self, step: Step) -> list[SequenceUpdate]:
        """Reads the oldest step. Whatever goes wrong with one sequence ends that one alone."""
        answers = {answered.span.sequence: answered for answered in step.launched.read()}
        for sequence in self._in_flight.pop():
            self._give_back(sequence)
        self.steps += 1
        updates: list[SequenceUpdate] = []
        now_s = time.monotonic()
        running = set(self._scheduler.running)
        for span in step.schedule.spans:
            sequence = span.sequence
            if sequence not in running:  # ended since this was launched: nobody is shown what was drawn for it after its end
                continue
            try:
                self._mark_computed(sequence, span.known_end)
                if (answered := answers.get(sequence)) is not None:
                    sequence.first_token_s = sequence.first_token_s or now_s
                    updates.append(self._take(answered))
            except Exception as error:
                logger.exception("the result of a step could not be taken")
                self._scheduler.remove(sequence)
                updates.append(SequenceUpdate(sequence.request_id, sequence, finish="error", error=_failure(error)))
        return updates

    def _take(self, answered: Answered) -> SequenceUpdate:
        update, ending = take_tokens(answered, self.ending)
        if ending is not None:
            self._scheduler.remove(update.sequence)
        if self._speculation is not None:
            self._speculation.take(answered, goes_on=ending is None)
        return update

    def _mark_computed(self, sequence: Sequence, num_computed: int) -> None:
        completed_given = sequence.num_computed < sequence.num_given <= num_computed
        sequence.num_computed = num_computed
        if completed_given:
            self.kv_cache.commit(sequence.tokens, sequence.blocks, num_computed)

    def ending(self, sequence: Sequence) -> Ending | None:
        """Whether its last token ended the answer, and how; for a prepared sequence with at least one answer token."""
        return ending_of(sequence, self.model_config.eos_token_ids, self.max_model_len)

    def _read_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Sequence):
                self._add(item)
            elif (sequence := self._scheduler.find(item)) is not None:
                self._scheduler.remove(sequence)
                self._endings.append(Ending(sequence, "aborted"))

    def _add(self, sequence: Sequence) -> None:
        try:
            ending = self.ending(sequence) if sequence.output else None
            if ending is None and self._speculation is not None:
                self._speculation.admit(sequence)
        except Exception as error:
            logger.exception("a sequence could not be taken in")
            ending = Ending(sequence, "error", _failure(error))
        if ending is None:
            self._scheduler.add(sequence)
        else:
            self._endings.append(ending)

    def _publish_endings(self) -> list[SequenceUpdate]:
        endings, self._endings = self._endings, []
        return [
            SequenceUpdate(ending.sequence.request_id, ending.sequence, finish=ending.finish, error=ending.error)
            for ending in endings
        ]

    def _everyone(self) -> list[Sequence]:
        return [*self._scheduler.running, *self._scheduler.waiting]


def _failure(error: Exception) -> ServalError:
    return error if isinstance(error, ServalError) else EngineFailed(f"{type(error).__name__}: {error}")
