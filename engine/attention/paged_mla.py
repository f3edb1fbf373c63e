"""Multi-head latent attention of decode steps over block tables on the device, in the absorbed form of engine/attention/mla.py."""

from collections.abc import Sequence

import torch

from engine.attention.mla import LatentProjections, LatentShape, absorbed, projected_out
from engine.attention.paged import EntryHeads, PagedAttention, PagedPlan
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.paged_batch import PagedBatch


class PagedMlaAttention:
    """AttentionBackend for a PagedBatch, over a KVPool whose entry is the latent, then the rotated part of the key."""

    def __init__(self, pool: KVPool, shape: LatentShape, layers: Sequence[LatentProjections]) -> None:
        """`layers`: one for each KV layer of the pool."""
        self._shape = shape
        self._layers = layers
        heads = EntryHeads(
            heads=shape.heads,
            kv_heads=1,
            key_width=shape.latent + shape.rope,
            value_width=shape.latent,
            keys_from=0,
            values_from=0,
            scale=shape.scale,
        )
        self._core = PagedAttention(pool, heads)

    def plan(self, batch: Batch) -> PagedPlan:
        assert isinstance(batch, PagedBatch)
        return self._core.plan(batch.tables)

    def attend(self, layer: int, query: torch.Tensor, plan: PagedPlan) -> torch.Tensor:
        up = self._layers[layer]
        rows = absorbed(query, up, self._shape).transpose(0, 1)
        latents = self._core.attend(layer, rows, plan)
        return projected_out(latents.transpose(0, 1), up).flatten(1)
