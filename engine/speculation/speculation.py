"""What an engine does about guesses: has them made, keeps those that could be of use, counts what became of them."""

from collections.abc import Sequence as SequenceOf

import torch

from engine.batch import Batch
from engine.models.base import OnLayer
from engine.sequence import Sequence
from engine.speculation.drafter import Drafter
from engine.speculation.verify import Verified


class Speculation:
    """One engine's. Belongs to the thread that steps."""

    def __init__(self, drafter: Drafter, draft_tokens: int, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        self._drafter = drafter
        self._draft_tokens = draft_tokens
        self._eos_token_ids = eos_token_ids
        self._max_model_len = max_model_len

    @property
    def needs_hidden(self) -> bool:
        return self._drafter.needs_hidden

    def launch(
        self, batch: Batch, hidden: torch.Tensor | None, verified: Verified | None, on_layer: OnLayer | None
    ) -> torch.Tensor | None:
        """See Drafter.launch."""
        return self._drafter.launch(batch, hidden, verified, on_layer)

    def admit(self, sequence: Sequence) -> None:
        """A sequence comes to be computed, maybe with guesses of whoever drew its last token, which it keeps if there are any."""
        if sequence.num_remaining == 1:
            self.guess(sequence, sequence.drafts)
        else:  # its prompt is computed here after all, maybe in chunks: guesses come after known tokens alone
            sequence.drafts = []

    def guess(self, sequence: Sequence, launched: SequenceOf[int]) -> None:
        """Sets `sequence.drafts`, now that its last token is known. launched: its row of what `launch` returned."""
        limit = min(self._draft_tokens, self._most_useful(sequence))
        guesses = self._drafter.guess(sequence, limit, launched) if limit > 0 else ()
        sequence.drafts = self._useful(sequence, guesses)

    def _most_useful(self, sequence: Sequence) -> int:
        """One token is drawn anyway, after the last guess: more guesses than that would lie beyond the answer's end."""
        params = sequence.params
        return min(params.max_tokens - len(sequence.output), self._max_model_len - len(sequence.tokens)) - 1

    def _useful(self, sequence: Sequence, guesses: SequenceOf[int]) -> list[int]:
        """Those before the first that cannot be accepted, or would end the answer: the draw in its place will tell."""
        params = sequence.params
        ends = params.stop_token_ids if params.ignore_eos else {*params.stop_token_ids, *self._eos_token_ids}
        count = next((index for index, token in enumerate(guesses) if token in ends), len(guesses))
        if sequence.matcher is not None:
            count = sequence.matcher.allowed(guesses[:count])
        return list(guesses[:count])
