"""Grouped-query attention by torch.nn.functional.scaled_dot_product_attention. Runs wherever torch runs.

One query token's heads that share a KV head are passed as query rows, which spares torch's expansion of the heads.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.context import Contexts, DecodeGroup, SpanContext, plan_contexts
from engine.batch import Batch
from engine.kv_pool import KVPool


@dataclass(frozen=True)
class Shape:
    """One layer's attention heads."""

    heads: int
    kv_heads: int
    head_dim: int

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
        shape = self._shape
        if context.length == 1:
            grouped = query.view(shape.kv_heads, 1, shape.group, shape.head_dim)
            return scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        attended = scaled_dot_product_attention(
            query.view(1, context.length, shape.heads, shape.head_dim).transpose(1, 2),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=context.mask,
            is_causal=context.mask is None,
            enable_gqa=shape.group > 1,
        )
        return attended.transpose(1, 2).reshape(context.length, -1)

    def _keys_values(self, layer: int, context: SpanContext) -> tuple[torch.Tensor, torch.Tensor]:
        if context.blocks is not None:
            return _split(context.entries(layer), self._shape)
        keys, values = self._layers[layer]
        return keys.narrow(2, context.first_slot, context.size), values.narrow(2, context.first_slot, context.size)

    def _attend_group(self, layer: int, query: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        shape, count = self._shape, group.count
        heads = group.entries(layer).view(count, group.longest, 2 * shape.kv_heads, shape.head_dim).transpose(1, 2)
        attended = scaled_dot_product_attention(
            query.view(count, shape.kv_heads, shape.group, shape.head_dim),
            heads[:, : shape.kv_heads],
            heads[:, shape.kv_heads :],
            attn_mask=group.mask,
        )
        return attended.reshape(count, -1)


def _split(tokens: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, entry_width] → K and V as [kv_heads, 1, tokens, head_dim], without a copy.

    The KV heads are the batch: then torch's result of one query token lies in memory in the order that the next product reads.
    """
    heads = tokens.view(-1, 2 * shape.kv_heads, 1, shape.head_dim).permute(1, 2, 0, 3)
    return heads[: shape.kv_heads], heads[shape.kv_heads :]
