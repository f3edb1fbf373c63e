"""Which guesses hold: the target's own draw decides.

At every row a token is drawn from the target's distribution, with the number that belongs to its position, as it would be without
guesses; a guess is accepted when it is the token that was drawn. For guesses that are one token each that is exact rejection
sampling: accepted with the target's probability of it, and otherwise the token drawn has the distribution of what is left
(Leviathan et al., 2023, with a point mass for the drafter's distribution). So an answer is the same, token for token, with guesses
or without.
"""

from dataclasses import dataclass

import torch

from engine.batch import Batch

NO_GUESS = -1


@dataclass(frozen=True)
class Verified:
    """What a forward pass drew, still on the device."""

    tokens: torch.Tensor
    """int64 [rows]: per row of `Batch.sampled`. Those of a sequence after its first wrong guess mean nothing."""
    accepted: torch.Tensor
    """int64 [sampled spans]: how many guesses hold."""
    last_rows: torch.Tensor
    """int64 [sampled spans]: the row, of `tokens`, that drew the last token of each."""


class Verification:
    """One step's guesses, on the device; made before the forward pass."""

    def __init__(self, batch: Batch) -> None:
        spans = batch.sampled_spans
        self._guesses: torch.Tensor | None = None
        first_rows, row = [], 0
        for span in spans:
            first_rows.append(row)
            row += 1 + len(span.drafts)
        self._first_rows = torch.tensor(first_rows, dtype=torch.long, device=batch.device)
        widest = max((len(span.drafts) for span in spans), default=0)
        if widest:
            guesses = [[*span.drafts, *[NO_GUESS] * (widest - len(span.drafts))] for span in spans]
            self._guesses = torch.tensor(guesses, device=batch.device)
            rows = [[min(first + index, row - 1) for index in range(widest)] for first in first_rows]
            self._rows = torch.tensor(rows, device=batch.device)

    def verify(self, tokens: torch.Tensor) -> Verified:
        """`tokens`: what was drawn at every row. Nothing here waits for the device."""
        if self._guesses is None:
            return Verified(tokens, torch.zeros_like(self._first_rows), self._first_rows)
        return accept(tokens, self._first_rows, self._rows, self._guesses)


def accept(tokens: torch.Tensor, first_rows: torch.Tensor, rows: torch.Tensor, guesses: torch.Tensor) -> Verified:
    """`rows` [sampled spans, n]: where the draw is that tells whether a guess of `guesses` [sampled spans, n] holds."""
    holds = tokens[rows] == guesses
    accepted = holds.cumprod(dim=1).sum(dim=1)
    return Verified(tokens, accepted, first_rows + accepted)
