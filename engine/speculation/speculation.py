"""What an engine does about guesses: has them made, computes those that pay, counts what became of them."""

from collections.abc import Sequence as SequenceOf
from weakref import WeakKeyDictionary, WeakSet

import torch

from engine.answered import Answered
from engine.batch import Batch
from engine.models.base import OnLayer
from engine.recent_steps import RecentSteps
from engine.sequence import Sequence
from engine.speculation.drafter import Drafter
from engine.speculation.pay_off import Odds, PayOff, best_counts
from engine.speculation.verify import Verified
from telemetry.metrics import Metrics

GRAMMAR = "grammar"
"""The drafter of tokens that a grammar leaves no choice about: they always hold."""


class Speculation:
    """One engine's. Belongs to the thread that steps."""

    def __init__(
        self,
        drafter: Drafter,
        draft_tokens: int,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        recent: RecentSteps,
        metrics: Metrics,
    ) -> None:
        """`draft_tokens`: the most that are guessed at once. `recent`: what steps take."""
        self._drafter = drafter
        self._draft_tokens = draft_tokens
        self._eos_token_ids = eos_token_ids
        self._max_model_len = max_model_len
        self._recent = recent
        self._metrics = metrics
        self._odds = Odds()
        """Of all requests' guesses: what is believed of a new one's."""
        self._pay_offs: WeakKeyDictionary[Sequence, PayOff] = WeakKeyDictionary()
        self._forced: WeakSet[Sequence] = WeakSet()
        """Whose guesses are a grammar's."""

    @property
    def needs_hidden(self) -> bool:
        return self._drafter.needs_hidden

    def launch(
        self, batch: Batch, hidden: torch.Tensor | None, verified: Verified | None, on_layer: OnLayer | None
    ) -> torch.Tensor | None:
        """See Drafter.launch."""
        return self._drafter.launch(batch, hidden, verified, on_layer)

    def admit(self, sequence: Sequence) -> None:
        """A sequence comes to be computed, maybe with guesses of whoever drew its last token."""
        if sequence.num_remaining == 1:
            self._guess(sequence, sequence.drafts)
        else:  # its prompt is computed here after all, maybe in chunks: guesses come after known tokens alone
            sequence.drafts = []

    def choose(self, sequences: SequenceOf[Sequence]) -> None:
        """Keeps those guesses of a step's decodes that pay."""
        guessing = [sequence for sequence in sequences if sequence.drafts]
        if not guessing:
            return
        pay_offs = [self._pay_off(sequence) for sequence in guessing]
        offers = [self._offer(sequence, pay_off) for pay_off, sequence in zip(pay_offs, guessing, strict=True)]
        counts = best_counts(offers, len(sequences) - len(guessing), *self._recent.decode_cost)
        for sequence, pay_off, worth in zip(guessing, pay_offs, counts, strict=True):
            was_on = pay_off.is_on
            del sequence.drafts[pay_off.settle(worth) :]
            if was_on and not pay_off.is_on:
                self._metrics.speculation_switched_off.of(drafter=self._drafter.name).inc()

    def _offer(self, sequence: Sequence, pay_off: PayOff) -> tuple[float, int]:
        """How likely each of its guesses holds, and how many can be computed."""
        if sequence in self._forced:
            return 1.0, len(sequence.drafts)
        return pay_off.odds, min(len(sequence.drafts), pay_off.reach)

    def take(self, answered: Answered, *, goes_on: bool) -> None:
        """Counts what became of a sequence's guesses, and sets the next ones; those of an answer that ends here are for whoever
        goes on with it elsewhere."""
        sequence = answered.span.sequence
        if answered.span.drafts:
            self._observe(sequence, len(answered.span.drafts), len(answered.tokens) - 1)
        if goes_on:
            self._guess(sequence, answered.guesses)
        else:
            sequence.drafts = list(answered.guesses)

    def _observe(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        sequence.drafted_tokens += drafted
        sequence.accepted_tokens += accepted
        metrics, name = self._metrics, GRAMMAR
        if sequence not in self._forced:
            name = self._drafter.name
            self._pay_off(sequence).observe(drafted, accepted)
            self._odds.add(drafted, accepted)
        metrics.draft_tokens.of(drafter=name).inc(drafted)
        metrics.accepted_tokens.of(drafter=name).inc(accepted)
        for position in range(accepted):
            metrics.accepted_tokens_by_position.of(drafter=name, position=str(position)).inc()

    def _pay_off(self, sequence: Sequence) -> PayOff:
        pay_off = self._pay_offs.get(sequence)
        if pay_off is None:
            pay_off = self._pay_offs[sequence] = PayOff(self._odds.value)
        return pay_off

    def _guess(self, sequence: Sequence, launched: SequenceOf[int]) -> None:
        limit = min(self._draft_tokens, self._most_useful(sequence))
        if limit <= 0:
            sequence.drafts = []
            return
        forced = sequence.matcher.forced if sequence.matcher is not None else ()
        (self._forced.add if forced else self._forced.discard)(sequence)
        guesses = forced[:limit] or self._drafter.guess(sequence, limit, launched)
        sequence.drafts = self._useful(sequence, guesses)

    def _most_useful(self, sequence: Sequence) -> int:
        """One token is drawn anyway, after the last guess: more guesses than that would lie beyond the answer's end."""
        params = sequence.params
        return min(params.max_tokens - len(sequence.output), self._max_model_len - len(sequence.tokens)) - 1

    def _useful(self, sequence: Sequence, guesses: SequenceOf[int]) -> list[int]:
        """Those before the first that cannot be accepted, or would end the answer: the draw in its place will tell."""
        if not guesses:
            return []
        params = sequence.params
        ends = params.stop_token_ids if params.ignore_eos else {*params.stop_token_ids, *self._eos_token_ids}
        count = next((index for index, token in enumerate(guesses) if token in ends), len(guesses))
        if sequence.matcher is not None:
            count = sequence.matcher.allowed(guesses[:count])
        return list(guesses[:count])
