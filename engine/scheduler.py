"""What to compute next: a pure decision over sequences and blocks, without I/O and without the model.

A step decodes every running sequence, with the guesses that come after its last token, then spends what is left of its token
budget on prompts, oldest first. Guesses take only what nobody needs: nothing is put back for them.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from engine.batch import Span
from engine.block_allocator import OutOfBlocks
from engine.ending import Ending
from engine.kv_cache import KVCache
from engine.sequence import Sequence
from protocol.errors import Overloaded

ChooseDrafts = Callable[[SequenceOf[Sequence]], None]
"""Called with the sequences that a step decodes; leaves them those guesses that are worth their time."""


@dataclass(frozen=True)
class Schedule:
    """One step's decision. `spans` have their blocks already."""

    spans: list[Span]
    endings: list[Ending]
    preemptions: int


@dataclass
class _Step:
    budget: int
    draft_budget: int = 0
    spans: dict[Sequence, Span] = field(default_factory=dict)
    endings: list[Ending] = field(default_factory=list)
    preemptions: int = 0


class Scheduler:
    """Sequences wait first in, first out, run until they end, and are put back, youngest first, when blocks run out."""

    def __init__(
        self, kv_cache: KVCache, *, max_batch_tokens: int, max_sequences: int, choose_drafts: ChooseDrafts | None = None
    ) -> None:
        self._kv_cache = kv_cache
        self._choose_drafts = choose_drafts
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence that has ended. Its blocks stay with it."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def find(self, request_id: str) -> Sequence | None:
        return next((s for s in (*self.running, *self.waiting) if s.request_id == request_id), None)

    @property
    def could_admit(self) -> bool:
        """Whether somebody waits for whom there is a place, blocks apart."""
        return bool(self.waiting) and len(self.running) < self._max_sequences

    def schedule(self) -> Schedule:
        step = _Step(self._max_batch_tokens)
        for decodes in (True, False):
            for sequence in list(self.running):
                if sequence in self.running and (sequence.num_remaining == 1) is decodes:
                    self._plan(sequence, step)
            if decodes and self._choose_drafts is not None:
                self._choose_drafts(list(step.spans))
                # Guesses that hold all the time would otherwise keep prompts from ever being computed.
                step.draft_budget = step.budget // 2 if self._has_prompts else step.budget
                for span in list(step.spans.values()):
                    self._add_drafts(span, step)
        self._admit(step)
        self._set_claim()
        return Schedule(list(step.spans.values()), step.endings, step.preemptions)

    @property
    def _has_prompts(self) -> bool:
        return bool(self.waiting) or any(sequence.num_remaining > 1 for sequence in self.running)

    def _plan(self, sequence: Sequence, step: _Step) -> None:
        length = min(sequence.num_remaining, step.budget)
        if length > 0 and self._grow(sequence, sequence.num_computed + length, step):
            step.spans[sequence] = Span(sequence, sequence.num_computed, sequence.num_computed + length)
            step.budget -= length

    def _add_drafts(self, span: Span, step: _Step) -> None:
        """Lengthens a decode by the sequence's guesses, as far as there is budget and room for their KV."""
        sequence = span.sequence
        wanted = min(len(sequence.drafts), step.draft_budget, step.budget)
        held = len(sequence.blocks) * self._kv_cache.block_size - span.end
        if wanted > held:
            missing = self._kv_cache.blocks_for(span.end + wanted) - len(sequence.blocks)
            if not self._take_spare(sequence, missing):
                wanted = held
        if wanted:
            step.spans[sequence] = replace(span, end=span.end + wanted, drafts=tuple(sequence.drafts[:wanted]))
            step.budget -= wanted
            step.draft_budget -= wanted

    def _take_spare(self, sequence: Sequence, count: int) -> bool:
        """Only while every running sequence could have one more block: none is to be put back for what another only guesses."""
        if not self._kv_cache.can_allocate(count + len(self.running)):
            return False
        try:
            sequence.take(self._kv_cache.allocate(count, after=sequence.blocks[-1]))
        except OutOfBlocks:  # another thread was quicker
            return False
        return True

    def _admit(self, step: _Step) -> None:
        blocked = False
        for sequence in list(self.waiting):
            if step.budget == 0 or len(self.running) >= self._max_sequences:
                return
            # One that holds its blocks passes those that wait for blocks: it may be what they wait for.
            if not sequence.blocks:
                if blocked:
                    continue
                if not self._can_ever_fit(sequence, step):
                    continue
                if not self._reserve(sequence):
                    blocked = True
                    continue
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._plan(sequence, step)
            if sequence.drafts and sequence in step.spans:
                self._add_drafts(step.spans[sequence], step)

    def _can_ever_fit(self, sequence: Sequence, step: _Step) -> bool:
        wanted = self._kv_cache.blocks_for(len(sequence.tokens))
        if wanted <= self._kv_cache.num_blocks:
            return True
        self.waiting.remove(sequence)
        if sequence.output:
            step.endings.append(Ending(sequence, "length"))
        else:
            error = Overloaded(f"the prompt needs {wanted} KV blocks, the whole pool has {self._kv_cache.num_blocks}")
            step.endings.append(Ending(sequence, "error", error))
        return False

    def _reserve(self, sequence: Sequence) -> bool:
        """Takes the blocks of all its known tokens, as many as possible from the prefix cache."""
        cached: list[int] = []
        num_cached = 0
        if not sequence.wants_prompt_logprobs:  # these come of computing the whole prompt
            cached, num_cached = self._kv_cache.match_prefix(sequence.tokens, again=sequence.looked_up)
        sequence.looked_up = True
        wanted = self._kv_cache.blocks_for(len(sequence.tokens)) - len(cached)
        try:
            fresh = self._kv_cache.allocate(wanted, after=cached[-1] if cached else None, claimed=sequence.num_preemptions > 0)
        except OutOfBlocks:
            self._kv_cache.release(cached)
            return False
        sequence.take(cached + fresh)
        sequence.num_computed = num_cached
        if not sequence.num_preemptions:
            sequence.cached_tokens = num_cached
        return True

    def _grow(self, sequence: Sequence, num_tokens: int, step: _Step) -> bool:
        """Gives it blocks for `num_tokens`, preempting the youngest sequences as needed; False when it was preempted itself."""
        missing = self._kv_cache.blocks_for(num_tokens) - len(sequence.blocks)
        while missing > 0:
            try:
                last = sequence.blocks[-1] if sequence.blocks else None
                sequence.take(self._kv_cache.allocate(missing, after=last, claimed=True))
                return True
            except OutOfBlocks:
                youngest = self.running[-1]
                self._preempt(youngest, step)
                if youngest is sequence:
                    return False
        return True

    def _preempt(self, sequence: Sequence, step: _Step) -> None:
        self.running.remove(sequence)
        step.spans.pop(sequence, None)
        self._kv_cache.commit(sequence.tokens, sequence.blocks, sequence.num_computed)
        self._kv_cache.release(sequence.give_up_blocks())
        sequence.num_preemptions += 1
        step.preemptions += 1
        self.waiting.appendleft(sequence)

    def _set_claim(self) -> None:
        preempted = (s for s in self.waiting if s.num_preemptions and not s.blocks)
        first = next(preempted, None)
        self._kv_cache.claim(0 if first is None else self._kv_cache.blocks_for(len(first.tokens)))
