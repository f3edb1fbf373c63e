"""Attention by torch.nn.functional.scaled_dot_product_attention. Runs wherever torch runs.

- A prefill chunk, or a long decode, is one call; its context is a view of the pool where its blocks are one run, else gathered.
- Short decodes are gathered and padded into one call: below `GATHERED_CONTEXT` tokens a call costs more than a copy.

One query token's heads that share a KV head are passed as query rows, which spares torch's expansion of the heads.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.batch import Batch, Span
from engine.kv_pool import KVPool

GATHERED_CONTEXT = 384
"""Tokens. Measured with 8 sequences of SmolLM2-135M in bfloat16 on one core: at 160 tokens one padded call takes 250 µs, of which
the copy is 70, and eight calls 450. A call's fixed cost is about that of copying 400 tokens."""


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

    def plan(self, batch: Batch) -> "list[_SingleSpan | _DecodeGroup]":
        parts: list[_SingleSpan | _DecodeGroup] = []
        short: dict[int, list[tuple[int, Span]]] = defaultdict(list)
        row = 0
        for span in batch.spans:
            if span.length == 1 and span.end <= GATHERED_CONTEXT:
                # Contexts of like length together: padding at most doubles the work.
                short[span.end.bit_length()].append((row, span))
            else:
                parts.append(self._single(row, span))
            row += span.length
        alone = [members[0] for members in short.values() if len(members) == 1]
        groups = [members for members in short.values() if len(members) > 1]
        parts += [self._single(*member) for member in alone]
        parts += [_DecodeGroup(self._pool, self._shape, members) for members in groups]
        return parts

    def attend(self, layer: int, query: torch.Tensor, plan: "list[_SingleSpan | _DecodeGroup]") -> torch.Tensor:
        if len(plan) == 1:
            return plan[0].attend(layer, query)
        attended = query.new_empty(query.shape[0], self._shape.heads * self._shape.head_dim)
        for part in plan:
            attended[part.rows] = part.attend(layer, query[part.rows])
        return attended

    def _single(self, row: int, span: Span) -> "_SingleSpan":
        return _SingleSpan(self._pool, self._layers, self._shape, row, span)


class _SingleSpan:
    """One sequence's tokens, over a view of the pool where possible."""

    def __init__(
        self, pool: KVPool, layers: list[tuple[torch.Tensor, torch.Tensor]], shape: Shape, row: int, span: Span
    ) -> None:
        self.rows = slice(row, row + span.length)
        self._pool = pool
        self._layers = layers
        self._shape = shape
        self._length = span.length
        self._context = span.end
        self._first_slot = span.sequence.blocks[0] * pool.block_size
        self._blocks: torch.Tensor | None = None
        if not span.sequence.is_contiguous:
            used = span.sequence.blocks[: -(-span.end // pool.block_size)]
            self._blocks = torch.tensor(used, device=pool.data.device)
        self._mask = _continuation_mask(span, pool) if span.length > 1 and span.start > 0 else None

    def attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        keys, values = self._keys_values(layer)
        shape = self._shape
        if self._length == 1:
            grouped = query.view(shape.kv_heads, 1, shape.group, shape.head_dim)
            return scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        attended = scaled_dot_product_attention(
            query.view(1, self._length, shape.heads, shape.head_dim).transpose(1, 2),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attn_mask=self._mask,
            is_causal=self._mask is None,
            enable_gqa=shape.group > 1,
        )
        return attended.transpose(1, 2).reshape(self._length, -1)

    def _keys_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._blocks is not None:
            return _split(self._pool.read(layer, self._blocks)[: self._context], self._shape)
        keys, values = self._layers[layer]
        return keys.narrow(2, self._first_slot, self._context), values.narrow(2, self._first_slot, self._context)


class _DecodeGroup:
    """One token each of several sequences, their contexts copied side by side and padded to the longest.

    What pads a context is its own first entry, masked: no sequence ever reads another's values, not even to weigh them with 0.
    """

    def __init__(self, pool: KVPool, shape: Shape, members: list[tuple[int, Span]]) -> None:
        device = pool.data.device
        self._pool = pool
        self._shape = shape
        self.rows = torch.tensor([row for row, _ in members], device=device)
        contexts = [span.end for _, span in members]
        self._count, self._longest = len(members), max(contexts)
        slots = np.empty((self._count, self._longest), dtype=np.int64)
        for row, (_, span) in zip(slots, members, strict=True):
            blocks = np.asarray(span.sequence.blocks[: -(-span.end // pool.block_size)]) * pool.block_size
            row[: span.end] = (blocks[:, None] + np.arange(pool.block_size)).ravel()[: span.end]
            row[span.end :] = blocks[0]
        self._slots = torch.from_numpy(slots.ravel()).to(device)
        self._mask: torch.Tensor | None = None
        if min(contexts) < self._longest:
            padding = torch.arange(self._longest, device=device) >= torch.tensor(contexts, device=device).unsqueeze(1)
            mask = torch.zeros(padding.shape, dtype=pool.dtype, device=device).masked_fill_(padding, float("-inf"))
            self._mask = mask.view(self._count, 1, 1, self._longest)

    def attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        shape, count = self._shape, self._count
        entries = self._pool.layer_tokens[layer].index_select(0, self._slots)
        heads = entries.view(count, self._longest, 2 * shape.kv_heads, shape.head_dim).transpose(1, 2)
        attended = scaled_dot_product_attention(
            query.view(count, shape.kv_heads, shape.group, shape.head_dim),
            heads[:, : shape.kv_heads],
            heads[:, shape.kv_heads :],
            attn_mask=self._mask,
        )
        return attended.reshape(count, -1)


def _continuation_mask(span: Span, pool: KVPool) -> torch.Tensor:
    """[length, context], added to the scores: a chunk sees all that came before it, and itself causally."""
    visible = torch.ones(span.length, span.end, dtype=torch.bool, device=pool.data.device).tril_(span.start)
    return torch.zeros(visible.shape, dtype=pool.dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def _split(tokens: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, entry_width] → K and V as [kv_heads, 1, tokens, head_dim], without a copy.

    The KV heads are the batch: then torch's result of one query token lies in memory in the order that the next product reads.
    """
    heads = tokens.view(-1, 2 * shape.kv_heads, 1, shape.head_dim).permute(1, 2, 0, 3)
    return heads[: shape.kv_heads], heads[shape.kv_heads :]
