"""LongCat-Flash's MTP head: from the model's hidden state and the token drawn from it, the token after that one.

At position i it computes eh_proj(enorm(embedding of token i + 1), hnorm(hidden state of token i after the final norm)), then one
latent attention, one dense MLP and a norm; the model's own lm_head makes logits. Names and order are those of the released
checkpoint. Its attention has one KV layer, entry i at position i.
"""

from typing import Any

import torch

from engine.attention.base import AttentionBackend
from engine.batch import Batch, Span
from engine.kv_pool import KVPool
from engine.models.base import OnLayer
from engine.models.longcat_weights import MtpLayer
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable
from engine.models.vocabulary import Head
from engine.split.ranks import Ranks


class MtpHead:
    """A DraftHead (engine/models/base.py).

    Of the whole batch only its KV is wanted, so a prompt's tokens pass the two projections that lead there and nothing else.
    Attention runs over the rows that are sampled, and all that comes after it over those that are chosen.
    """

    def __init__(
        self, layer: MtpLayer, model_norm: RmsNorm, lm_head: Head, rope: RopeTable, kv_layer: int, ranks: Ranks
    ) -> None:
        self.attention = layer.attention
        self._layer = layer
        self._model_norm = model_norm
        self._lm_head = lm_head
        self._rope = rope
        self._kv_layer = kv_layer
        self._ranks = ranks
        self._planned: tuple[Batch, Any] | None = None

    def plan(self, batch: Batch, attention: AttentionBackend, model_plan: Any) -> None:
        """What the host does for `draft`; called when the forward pass of `batch` begins, so that nothing waits between the two.
        `model_plan`: that pass's attention."""
        if batch.num_sampled in (0, batch.num_tokens):
            self._planned = batch, model_plan
        else:
            self._planned = batch, attention.plan(_sampled_tails(batch))

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
        assert self._planned is not None and self._planned[0] is batch, "a draft follows the forward pass of its batch"
        (_, plan), self._planned = self._planned, None
        layer = self._layer
        tokens = layer.token_norm(self._ranks.sum(layer.embedding(next_token_ids)))
        x = layer.joint(torch.cat((tokens, layer.hidden_norm(self._model_norm(hidden))), dim=-1))
        down = layer.attention.down(layer.input_norm(x))
        turn = self._rope.at(batch.positions)
        pool.write(self._kv_layer, batch.slots, layer.attention.entries(down, self._rope, *turn))
        if on_layer is not None:
            on_layer(self._kv_layer, batch)
        if not batch.num_sampled:
            return None
        if batch.num_sampled < batch.num_tokens:
            rows = batch.sampled_rows
            x, down, turn = x[rows], down[rows], (turn[0][rows], turn[1][rows])
        query = layer.attention.queries(down, self._rope, *turn)
        attended = attention.attend(self._kv_layer, query, plan)
        x = layer.attention.output(attended[chosen]).add_(x[chosen])
        x = layer.mlp(layer.post_attention_norm(x)).add_(x)
        return self._lm_head(layer.norm(x))


def _sampled_tails(batch: Batch) -> Batch:
    """The rows of `batch` that are sampled: from each sequence's last known token on."""
    tails = [Span(span.sequence, span.known_end - 1, span.end, span.drafts) for span in batch.sampled_spans]
    return Batch(tails, batch.block_size, batch.device)
