"""Who guesses: what the engine asks of it."""

from collections.abc import Sequence as SequenceOf
from typing import Protocol

import torch

from engine.batch import Batch
from engine.models.base import OnLayer
from engine.sequence import Sequence
from engine.speculation.verify import Verified


class Drafter(Protocol):
    """Guesses tokens, for one thread at a time. A wrong guess is never shown, so none of this need be exact or repeatable."""

    @property
    def name(self) -> str:
        """As metrics call it."""

    @property
    def needs_hidden(self) -> bool:
        """Whether `launch` is to be given the target's hidden states, and batches with `next_token_ids`."""

    def launch(
        self, batch: Batch, hidden: torch.Tensor | None, verified: Verified | None, on_layer: OnLayer | None
    ) -> torch.Tensor | None:
        """What there is to do on the device, right after the target's forward pass of `batch`, before anything of it was read.

        hidden: what that forward gave to OnHidden, where needed. verified: None where nothing is sampled. on_layer: for KV layers
        that the drafter computes. Returns guesses, int64 [sampled spans, n], or None where none are made here.
        """

    def guess(self, sequence: Sequence, limit: int, launched: SequenceOf[int]) -> SequenceOf[int]:
        """At most `limit` guesses for the positions after the last known token of a sequence, once that token is known.

        launched: its row of what `launch` returned; empty where it has none, as when another worker drew its last token.
        """
