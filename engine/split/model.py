"""A split model as the leader's engine sees it: a Model. Before each thing that it computes, the followers are told to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.attention.base import AttentionBackend
from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.kv_pool import KVPool
from engine.models.base import DraftHead, Model, OnHidden, OnLayer
from engine.models.config import ModelConfig
from engine.models.expert_tally import ExpertTally
from engine.split.leader import Leader
from engine.split.mirror import Mirror
from engine.split.ranks import Ranks
from engine.split.step import spans_message


class SplitModel:
    """A Model (engine/models/base.py). Whatever raises within it leaves the processes out of step: then `failure` says so, and
    only new processes can go on."""

    def __init__(self, model: Model, leader: Leader, ranks: Ranks, num_blocks: int, block_size: int) -> None:
        """`model`: the leader's share. `num_blocks`, `block_size`: of the KV pool."""
        self._model = model
        self._leader = leader
        self._ranks = ranks
        self._mirror = Mirror(num_blocks, block_size)
        self._draft_head = None if model.draft_head is None else SplitDraftHead(model.draft_head, self)

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def draft_head(self) -> DraftHead | None:
        return self._draft_head

    @property
    def expert_tally(self) -> ExpertTally | None:
        """Its choices are all processes' choices; its rows those of the experts that are here."""
        return self._model.expert_tally

    @property
    def failure(self) -> str | None:
        return self._leader.failure

    def watch(self, kv_cache: KVCache) -> None:
        """Whose blocks its KV lies in: what is taken anew is not what the followers have."""
        kv_cache.on_allocate = self._mirror.forget

    def close(self) -> None:
        self._leader.close()

    def attention_over(self, pool: KVPool) -> AttentionBackend:
        return self._model.attention_over(pool)

    def forward(
        self,
        batch: Batch,
        pool: KVPool,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
        on_hidden: OnHidden | None = None,
    ) -> torch.Tensor | None:
        hidden: list[torch.Tensor] = []
        with self.in_step():
            self._tell_forward(batch, pool)
            logits = self._model.forward(batch, pool, attention, on_layer, hidden.append if on_hidden is not None else None)
        if on_hidden is not None:  # only now: it may ask for logits, which followers compute after this pass
            on_hidden(hidden[0])
        return logits

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with self.in_step():
            self._leader.tell({"kind": "logits", "rows": hidden.shape[0]})
            return self._model.logits(self._ranks.broadcast(hidden.clone()))

    def tell_draft(self, next_token_ids: torch.Tensor, chosen: torch.Tensor) -> None:
        """Followers draft after their last pass, from these."""
        self._leader.tell({"kind": "draft", "chosen": chosen.shape[0]})
        self._ranks.broadcast(torch.cat((next_token_ids, chosen)))

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """What happens within happens in all processes."""
        try:
            yield
        except Exception as error:
            raise self._leader.give_up(f"{type(error).__name__}: {error}") from error

    def _tell_forward(self, batch: Batch, pool: KVPool) -> None:
        adopted = self._mirror.missing(batch.spans)
        unread = any(span.unread for span in batch.spans)
        self._leader.tell(
            {
                "kind": "forward",
                "spans": spans_message(batch, self.config.history),
                "shifted": batch.next_token_ids is not None,
                "adopted": adopted,
                "unread": unread,
            }
        )
        if adopted:
            send_blocks(self._ranks, pool, adopted)
        if unread:  # drawn by a step that the host has not read: only this device has them
            self._ranks.broadcast(batch.token_ids)


class SplitDraftHead:
    """A DraftHead (engine/models/base.py)."""

    def __init__(self, head: DraftHead, model: SplitModel) -> None:
        self._head = head
        self._model = model

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
        with self._model.in_step():
            self._model.tell_draft(next_token_ids, chosen)
            return self._head.draft(batch, hidden, next_token_ids, chosen, pool, attention, on_layer)


def send_blocks(ranks: Ranks, pool: KVPool, blocks: list[int]) -> None:
    """What of the leader's pool came from another worker, to all followers' pools; layer by layer, for a long prompt's is large.
    Called by all processes."""
    places = torch.tensor(blocks, device=pool.data.device)
    for layer in pool.data:
        entries = ranks.broadcast(layer.index_select(0, places))
        if not ranks.share.is_first:
            layer.index_copy_(0, places, entries)
