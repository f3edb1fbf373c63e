"""The step after steps whose results nobody has read yet: what can be decided about it without them. A pure decision."""

from engine.batch import Span
from engine.block_allocator import OutOfBlocks
from engine.kv_cache import KVCache
from engine.launched import Launched
from engine.scheduler import Schedule, Scheduler
from engine.sequence import Sequence


class StepsAhead:
    """Decodes go on by one token: where a token comes to lie is known before the token is. Whoever ends meanwhile has computed in
    vain, which is cut and never shown.

    A step is not decided ahead where results could change who is in it (somebody could be admitted, a prompt is not computed yet,
    blocks run short, so that someone would be put back), or where a rule of somebody's next draw looks at the tokens before it.
    """

    def __init__(self, scheduler: Scheduler, kv_cache: KVCache, max_model_len: int) -> None:
        self._scheduler = scheduler
        self._kv_cache = kv_cache
        self._max_model_len = max_model_len

    def schedule(self, last: Launched) -> Schedule:
        """What follows `last`, the step launched last; without spans where its results, or those before, must be known first."""
        going_on = self._going_on(last)
        if going_on is None or not all(self._has_room(sequence) for sequence in going_on):
            return Schedule([], [], 0)
        spans = []
        for sequence in going_on:
            end = len(sequence.tokens) + sequence.in_flight
            spans.append(Span(sequence, end - 1, end, unread=sequence.in_flight))
        return Schedule(spans, [], 0)

    def _going_on(self, last: Launched) -> list[Sequence] | None:
        """In the order of `last`; None where it cannot be told yet."""
        if self._scheduler.could_admit or len(last.sampled_spans) < len(last.spans):
            return None
        running, drawn = set(self._scheduler.running), [span.sequence for span in last.spans]
        # Those that run and are not in `last` have their last token under way, or were left out of it.
        if any(not sequence.in_flight for sequence in running.difference(drawn)):
            return None
        going_on = [sequence for sequence in drawn if sequence in running and not self._ends_in_flight(sequence)]
        return None if any(_looks_back(sequence) for sequence in going_on) else going_on

    def _ends_in_flight(self, sequence: Sequence) -> bool:
        """Whether one of the tokens that are not read yet is its last, whatever they are."""
        in_flight = sequence.in_flight
        most = sequence.params.max_tokens
        return len(sequence.output) + in_flight >= most or len(sequence.tokens) + in_flight >= self._max_model_len

    def _has_room(self, sequence: Sequence) -> bool:
        """Takes the block that its next token's KV needs, if it needs one; nobody is put back for it."""
        missing = self._kv_cache.blocks_for(len(sequence.tokens) + sequence.in_flight) - len(sequence.blocks)
        if missing > 0:
            try:
                sequence.take(self._kv_cache.allocate(missing, after=sequence.blocks[-1], claimed=True))
            except OutOfBlocks:
                return False
        return True


def _looks_back(sequence: Sequence) -> bool:
    """Whether the host has to know its tokens before the next one is drawn."""
    return sequence.matcher is not None or sequence.params.is_penalised
