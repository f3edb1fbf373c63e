"""Guessing with the model's own head (multi-token prediction): one token more, in the same pass, for a little part of its work."""

from collections.abc import Sequence as SequenceOf

import torch

from engine.attention.base import AttentionBackend
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.models.base import DraftHead, OnLayer
from engine.sequence import Sequence
from engine.speculation.verify import Verified


class MtpDrafter:
    """A Drafter. The head runs over every batch of the target's, prompts too: its KV must be there when it guesses.

    A prefix cache's block may hold, at its last position, an entry that was made for another next token: that position's input is
    a token of the next block. The head alone reads it, so a guess may be poorer for it, and no answer changes.
    """

    name = "mtp"
    needs_hidden = True

    def __init__(self, head: DraftHead, pool: KVPool, attention: AttentionBackend) -> None:
        """`attention`: the model's, over `pool`."""
        self._head = head
        self._pool = pool
        self._attention = attention

    def launch(
        self, batch: Batch, hidden: torch.Tensor | None, verified: Verified | None, on_layer: OnLayer | None
    ) -> torch.Tensor | None:
        """One guess per sampled span: the head's likeliest token after the one drawn last."""
        assert hidden is not None and batch.next_token_ids is not None
        next_token_ids, chosen = batch.next_token_ids, batch.sampled_rows
        if verified is not None:
            # What was drawn at a row follows it. After a wrong guess neither means anything: the next step computes it again.
            next_token_ids = next_token_ids.index_copy(0, batch.sampled_rows, verified.tokens)
            chosen = verified.last_rows
        logits = self._head.draft(batch, hidden, next_token_ids, chosen, self._pool, self._attention, on_layer)
        return None if logits is None else logits.argmax(dim=-1, keepdim=True)

    def guess(self, sequence: Sequence, limit: int, launched: SequenceOf[int]) -> SequenceOf[int]:
        """What was guessed when the last token was drawn, here or by the worker that computed the prompt."""
        return launched[:limit]
