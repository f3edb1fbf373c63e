"""Which part of the paged pool each of a batch's tokens attends to: planned once per forward, shared by all layers and backends.

- A prefill chunk, or a long decode, is one call; its context is a view of the pool where its blocks are one run, else gathered.
- Short decodes are gathered and padded into one call: below `GATHERED_CONTEXT` tokens a call costs more than a copy.
"""

from collections import defaultdict

import numpy as np
import torch

from engine.batch import Batch, Span
from engine.kv_pool import KVPool

GATHERED_CONTEXT = 384
"""Tokens. Measured with 8 sequences of SmolLM2-135M in bfloat16 on one core: at 160 tokens one padded call takes 250 µs, of which
the copy is 70, and eight calls 450. A call's fixed cost is about that of copying 400 tokens."""


class SpanContext:
    """One sequence's tokens, over a view of the pool where possible."""

    def __init__(self, pool: KVPool, row: int, span: Span) -> None:
        self.rows = slice(row, row + span.length)
        self.length = span.length
        self.size = span.end
        """Tokens that are attended to."""
        self.first_slot = span.sequence.blocks[0] * pool.block_size
        self.blocks: torch.Tensor | None = None
        """None: the context is one run of slots that begins with `first_slot`."""
        self._pool = pool
        if not span.sequence.is_contiguous:
            used = span.sequence.blocks[: -(-span.end // pool.block_size)]
            self.blocks = torch.tensor(used, device=pool.data.device)
        self.mask = _continuation_mask(span, pool) if span.length > 1 and span.start > 0 else None
        """[length, size], added to the scores. None: one token that sees everything, or a prompt's beginning, causal."""

    def entries(self, layer: int) -> torch.Tensor:
        """[size, entry_width]: a view where the context is one run, else a copy."""
        if self.blocks is None:
            return self._pool.layer_tokens[layer].narrow(0, self.first_slot, self.size)
        return self._pool.read(layer, self.blocks)[: self.size]


class DecodeGroup:
    """One token each of several sequences, their contexts copied side by side and padded to the longest.

    What pads a context is its own first entry, masked: no sequence ever reads another's values, not even to weigh them with 0.
    """

    def __init__(self, pool: KVPool, members: list[tuple[int, Span]]) -> None:
        device = pool.data.device
        self._pool = pool
        self.rows = torch.tensor([row for row, _ in members], device=device)
        contexts = [span.end for _, span in members]
        self.count, self.longest = len(members), max(contexts)
        slots = np.empty((self.count, self.longest), dtype=np.int64)
        for row, (_, span) in zip(slots, members, strict=True):
            blocks = np.asarray(span.sequence.blocks[: -(-span.end // pool.block_size)]) * pool.block_size
            row[: span.end] = (blocks[:, None] + np.arange(pool.block_size)).ravel()[: span.end]
            row[span.end :] = blocks[0]
        self._slots = torch.from_numpy(slots.ravel()).to(device)
        self.mask: torch.Tensor | None = None
        """[count, 1, 1, longest], added to the scores, where the lengths differ."""
        if min(contexts) < self.longest:
            padding = torch.arange(self.longest, device=device) >= torch.tensor(contexts, device=device).unsqueeze(1)
            mask = torch.zeros(padding.shape, dtype=pool.dtype, device=device).masked_fill_(padding, float("-inf"))
            self.mask = mask.view(self.count, 1, 1, self.longest)

    def entries(self, layer: int) -> torch.Tensor:
        """[count, longest, entry_width], a copy."""
        return self._pool.layer_tokens[layer].index_select(0, self._slots).view(self.count, self.longest, -1)


Contexts = list[SpanContext | DecodeGroup]


def plan_contexts(batch: Batch, pool: KVPool) -> Contexts:
    """Every row of the batch in exactly one context."""
    contexts: Contexts = []
    short: dict[int, list[tuple[int, Span]]] = defaultdict(list)
    row = 0
    for span in batch.spans:
        if span.length == 1 and span.end <= GATHERED_CONTEXT:
            # Contexts of like length together: padding at most doubles the work.
            short[span.end.bit_length()].append((row, span))
        else:
            contexts.append(SpanContext(pool, row, span))
        row += span.length
    alone = [members[0] for members in short.values() if len(members) == 1]
    groups = [members for members in short.values() if len(members) > 1]
    contexts += [SpanContext(pool, *member) for member in alone]
    contexts += [DecodeGroup(pool, members) for members in groups]
    return contexts


def _continuation_mask(span: Span, pool: KVPool) -> torch.Tensor:
    """A chunk sees all that came before it, and itself causally."""
    visible = torch.ones(span.length, span.end, dtype=torch.bool, device=pool.data.device).tril_(span.start)
    return torch.zeros(visible.shape, dtype=pool.dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
