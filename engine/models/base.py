"""What the engine needs of a model, whatever its family."""

from collections.abc import Callable
from typing import Protocol

import torch

from engine.attention.base import AttentionBackend
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.models.config import ModelConfig
from engine.models.expert_tally import ExpertTally

OnLayer = Callable[[int, Batch], None]
"""Called with (KV layer, batch) once per KV layer, as soon as that layer's KV of the batch's spans is in the pool."""

OnHidden = Callable[[torch.Tensor], None]
"""Called with the last layer's residual stream of the whole batch, [tokens, hidden_size]; `Model.logits` takes rows of it."""


class DraftHead(Protocol):
    """A small part of a model that guesses the token after the next one (multi-token prediction, MTP)."""

    def draft(
        self,
        batch: Batch,
        hidden: torch.Tensor,
        next_token_ids: torch.Tensor,
        chosen: torch.Tensor,
        pool: KVPool,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
    ) -> torch.Tensor | None:
        """Computes the head's own KV of the whole batch, and its logits where it is asked; after `Model.forward` of `batch`.

        hidden: what that forward gave to OnHidden. next_token_ids [tokens]: per row of the batch, the token after it. chosen [n]:
        rows of that forward's logits. Returns [n, vocab_size], for each chosen row what may follow its next token, or None where
        nothing is sampled.
        """


class Model(Protocol):
    """Weights and the forward pass. Owns no KV."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def draft_head(self) -> DraftHead | None:
        """Where the model has one and it is on; then it computes the pool's last KV layer, which `forward` leaves alone."""

    @property
    def expert_tally(self) -> ExpertTally | None:
        """Where the model has experts: how much work they had."""

    def attention_over(self, pool: KVPool) -> AttentionBackend:
        """The attention of this model's heads over `pool`, which has its KV layers and entries."""

    def forward(
        self,
        batch: Batch,
        pool: KVPool,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
        on_hidden: OnHidden | None = None,
    ) -> torch.Tensor | None:
        """Computes the batch's KV into the pool; logits [sampled sequences, vocab_size], or None where none is sampled."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocab_size] of rows of the last layer's residual stream."""


def finish_forward(model: Model, batch: Batch, hidden: torch.Tensor, on_hidden: OnHidden | None) -> torch.Tensor | None:
    """How every forward ends: from the last layer's residual stream to what `Model.forward` returns."""
    if on_hidden is not None:
        on_hidden(hidden)
    if not batch.num_sampled:
        return None
    return model.logits(hidden if batch.num_tokens == batch.num_sampled else hidden[batch.sampled_rows])
