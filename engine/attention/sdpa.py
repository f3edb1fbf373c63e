"""Grouped-query attention by torch.nn.functional.scaled_dot_product_attention. Runs wherever torch runs.

A decode's heads that share a KV head are passed as query rows, so that torch reads the KV head once for them all.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.context import Contexts, DecodeGroup, SpanContext, plan_contexts
from engine.batch import Batch
from engine.kv_pool import KVPool


@dataclass(frozen=True)
class Shape:
    """One layer's attention heads: all of the model, or those of one of the processes that share it."""

    heads: int
    kv_heads: int
    """Those that `heads` share, in equal groups."""
    head_dim: int
    first_kv_head: int = 0
    """In an entry of the pool, which has those of the whole model."""
    pool_kv_heads: int | None = None
    """None: no more than `kv_heads`."""

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


class SdpaAttention:
    """AttentionBackend for grouped-query attention over a KVPool of K heads followed by V heads."""

    def __init__(self, pool: KVPool, shape: Shape) -> None:
        self._pool = pool
        self._shape = shape
        self._layers = [_split(tokens, shape) for tokens in pool.layer_tokens]

    @property
    def shape(self) -> Shape:
        return self._shape

    def plan(self, batch: Batch) -> Contexts:
        return plan_contexts(batch, self._pool)

    def attend(self, layer: int, query: torch.Tensor, plan: Contexts) -> torch.Tensor:
        if len(plan) == 1:
            return self._attend(layer, query, plan[0])
        attended = query.new_empty(query.shape[0], self._shape.heads * self._shape.head_dim)
        for context in plan:
            attended[context.rows] = self._attend(layer, query[context.rows], context)
        return attended

    def _attend(self, layer: int, query: torch.Tensor, context: SpanContext | DecodeGroup) -> torch.Tensor:
        if isinstance(context, DecodeGroup):
            return self._attend_group(layer, query, context)
        return self._attend_span(layer, query, context)

    def _attend_span(self, layer: int, query: torch.Tensor, context: SpanContext) -> torch.Tensor:
        keys, values = self._keys_values(layer, context)
        shape, length = self._shape, context.length
        if context.is_decode:
            # The KV heads are the batch, see _split.
            rows = query.view(length, shape.kv_heads, shape.group, shape.head_dim).transpose(0, 1)
            rows = rows.reshape(shape.kv_heads, 1, length * shape.group, shape.head_dim)
            attended = scaled_dot_product_attention(rows, keys, values, attn_mask=context.mask_of_heads(shape.group))
            return attended.reshape(shape.kv_heads, length, -1).transpose(0, 1).reshape(length, -1)
        attended = scaled_dot_product_attention(
            query.view(1, length, shape.heads, shape.head_dim).transpose(1, 2),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=context.mask,
            is_causal=context.is_causal,
            enable_gqa=shape.group > 1,
        )
        return attended.transpose(1, 2).reshape(length, -1)

    def _keys_values(self, layer: int, context: SpanContext) -> tuple[torch.Tensor, torch.Tensor]:
        if context.blocks is not None:
            return _split(context.entries(layer), self._shape)
        keys, values = self._layers[layer]
        return keys.narrow(2, context.first_slot, context.size), values.narrow(2, context.first_slot, context.size)

    def _attend_group(self, layer: int, query: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        shape, count, length = self._shape, group.count, group.length
        heads = group.entries(layer).view(count, group.longest, -1, shape.head_dim).transpose(1, 2)
        keys, values = _own(heads, 1, shape)
        rows = query.view(count, length, shape.kv_heads, shape.group * shape.head_dim).transpose(1, 2)
        attended = scaled_dot_product_attention(
            rows.reshape(count, shape.kv_heads, length * shape.group, shape.head_dim),
            keys,
            values,
            attn_mask=group.mask_of_heads(shape.group),
        )
        return attended.reshape(count, shape.kv_heads, length, -1).transpose(1, 2).reshape(count * length, -1)


def _split(tokens: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, entry_width] → K and V as [kv_heads, 1, tokens, head_dim], without a copy.

    The KV heads are the batch: then torch's result of one query token lies in memory in the order that the next product reads.
    """
    return _own(tokens.view(tokens.shape[0], -1, 1, shape.head_dim).permute(1, 2, 0, 3), 0, shape)


def _own(heads: torch.Tensor, dim: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the K heads, then the V heads, along `dim`, those that `shape` attends to."""
    pool_heads = shape.pool_kv_heads or shape.kv_heads
    return (
        heads.narrow(dim, shape.first_kv_head, shape.kv_heads),
        heads.narrow(dim, pool_heads + shape.first_kv_head, shape.kv_heads),
    )
