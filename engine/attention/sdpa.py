"""Attention by torch.nn.functional.scaled_dot_product_attention, sequence by sequence. Runs wherever torch runs.

A sequence whose blocks are one run is read in place, as a view of the pool; else its blocks are gathered first. One query
token's heads that share a KV head are passed as query rows, which spares the mask and torch's own head expansion.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.batch import Batch, Span
from engine.kv_pool import KVPool


@dataclass(frozen=True)
class SpanPlan:
    """How to reach one span's context: a run of slots, or blocks to gather."""

    rows: slice
    """The span's place in the batch."""
    context: int
    """Tokens attended to, the span's own included."""
    first_slot: int
    blocks: torch.Tensor | None
    """Set where the blocks are not one run."""
    mask: torch.Tensor | None
    """[length, context], added to the scores; None where none is needed (one token) or torch's own causal flag serves."""


class SdpaAttention:
    """AttentionBackend for grouped-query attention over a KVPool of K heads followed by V heads."""

    def __init__(self, pool: KVPool, *, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        self._pool = pool
        self._heads = num_heads
        self._kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._keys, self._values = zip(*(self._split(tokens) for tokens in pool.layer_tokens), strict=True)

    def plan(self, batch: Batch) -> list[SpanPlan]:
        plans = []
        row = 0
        for span in batch.spans:
            plans.append(self._plan_span(span, row, batch.block_size))
            row += span.length
        return plans

    def attend(self, layer: int, query: torch.Tensor, plan: list[SpanPlan]) -> torch.Tensor:
        if len(plan) == 1:
            return self._attend_span(layer, query, plan[0])
        return torch.cat([self._attend_span(layer, query[span.rows], span) for span in plan])

    def _plan_span(self, span: Span, row: int, block_size: int) -> SpanPlan:
        sequence = span.sequence
        blocks = None
        if not sequence.is_contiguous:
            used = sequence.blocks[: -(-span.end // block_size)]
            blocks = torch.tensor(used, device=self._pool.data.device)
        mask = None
        if span.length > 1 and span.start > 0:
            visible = torch.ones(span.length, span.end, dtype=torch.bool, device=self._pool.data.device).tril_(span.start)
            mask = torch.zeros(visible.shape, dtype=self._pool.dtype, device=visible.device)
            mask.masked_fill_(~visible, float("-inf"))
        first_slot = sequence.blocks[0] * block_size
        return SpanPlan(slice(row, row + span.length), span.end, first_slot, blocks, mask)

    def _attend_span(self, layer: int, query: torch.Tensor, span: SpanPlan) -> torch.Tensor:
        keys, values = self._context(layer, span)
        length = span.rows.stop - span.rows.start
        if length == 1:
            grouped = query.view(self._kv_heads, 1, self._heads // self._kv_heads, self._head_dim)
            return scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        attended = scaled_dot_product_attention(
            query.view(1, length, self._heads, self._head_dim).transpose(1, 2),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=span.mask,
            is_causal=span.mask is None,
            enable_gqa=self._heads != self._kv_heads,
        )
        return attended.transpose(1, 2).reshape(length, -1)

    def _context(self, layer: int, span: SpanPlan) -> tuple[torch.Tensor, torch.Tensor]:
        if span.blocks is None:
            first, count = span.first_slot, span.context
            return self._keys[layer].narrow(2, first, count), self._values[layer].narrow(2, first, count)
        return self._split(self._pool.read(layer, span.blocks)[: span.context])

    def _split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, entry_width] → K and V as [kv_heads, 1, tokens, head_dim], without a copy.

        The KV heads are the batch: then torch's result of one query token lies in memory in the order that the next product reads.
        """
        heads = tokens.view(-1, 2 * self._kv_heads, 1, self._head_dim).permute(1, 2, 0, 3)
        return heads[: self._kv_heads], heads[self._kv_heads :]
