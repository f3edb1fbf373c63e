"""Grouped-query attention of decode steps over block tables on the device."""

import torch

from engine.attention.paged import EntryHeads, PagedAttention, PagedPlan
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.paged_batch import PagedBatch


class PagedGqaAttention:
    """AttentionBackend for a PagedBatch, over a KVPool of K heads and V heads."""

    def __init__(self, pool: KVPool, heads: EntryHeads) -> None:
        self._core = PagedAttention(pool, heads)

    def plan(self, batch: Batch) -> PagedPlan:
        assert isinstance(batch, PagedBatch)
        return self._core.plan(batch.tables)

    def attend(self, layer: int, query: torch.Tensor, plan: PagedPlan) -> torch.Tensor:
        return self._core.attend(layer, query, plan).flatten(1)
