"""Which part of the paged pool each of a batch's tokens attends to: planned once per forward, shared by all layers and backends.

- A prefill chunk, or a long decode, is one call; its context is a view of the pool where its blocks are one run, else gathered.
- Short decodes are gathered and padded into one call: below `GATHERED_CONTEXT` tokens a call costs more than a copy.

A decode is a sequence's next token, and those guessed after it: a few tokens that attend to many. Backends pass the query heads
that share a KV entry as so many rows of one query head, so that the entries are read once for them all.
"""

from collections import defaultdict

import numpy as np
import torch

from engine.batch import Batch, Span
from engine.kv_pool import KVPool

GATHERED_CONTEXT = 384
"""Tokens. Measured with 8 sequences of SmolLM2-135M in bfloat16 on one core: at 160 tokens one padded call takes 250 µs, of which
the copy is 70, and eight calls 450. A call's fixed cost is about that of copying 400 tokens."""

DECODE_LENGTH = 16
"""Tokens of one sequence up to which heads are rows. Its price is a mask of a row per head. Measured on one core over 2,048
tokens, milliseconds with heads as heads and as rows: 3 heads, 5 tokens 1.0 and 0.7 (float32); 8 latent heads over 1,024 tokens,
2 tokens 1.9 and 0.3, 5 tokens 2.0 and 0.8 (bfloat16)."""


class _Context:
    """`mask` [..., length, tokens attended to] is added to the scores. None: every query sees everything, or `is_causal`."""

    mask: torch.Tensor | None
    length: int
    _mask_of_heads: torch.Tensor | None = None

    def mask_of_heads(self, heads: int) -> torch.Tensor | None:
        """`mask` for `heads` rows in place of each of its rows; made once per forward."""
        if self.mask is None or self.length == 1:
            return self.mask
        if self._mask_of_heads is None:
            self._mask_of_heads = self.mask.repeat_interleave(heads, dim=-2)
        return self._mask_of_heads


class SpanContext(_Context):
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
        self.is_causal = span.length > 1 and span.start == 0
        """A prompt's beginning: it needs no mask."""
        self.is_decode = span.length == 1 or (span.length <= DECODE_LENGTH and not self.is_causal)
        self.mask = None
        if span.length > 1 and not self.is_causal:
            self.mask = _mask(torch.arange(span.start, span.end, device=pool.data.device), span.end, pool)

    def entries(self, layer: int) -> torch.Tensor:
        """[size, entry_width]: a view where the context is one run, else a copy."""
        if self.blocks is None:
            return self._pool.layer_tokens[layer].narrow(0, self.first_slot, self.size)
        return self._pool.read(layer, self.blocks)[: self.size]


class DecodeGroup(_Context):
    """Decodes of several sequences, of one length, their contexts copied side by side and padded to the longest.

    What pads a context is its own first entry, masked: no sequence ever reads another's values, not even to weigh them with 0.
    """

    def __init__(self, pool: KVPool, members: list[tuple[int, Span]]) -> None:
        device = pool.data.device
        self._pool = pool
        self.length = members[0][1].length
        self.rows = torch.tensor([row + i for row, _ in members for i in range(self.length)], device=device)
        contexts = [span.end for _, span in members]
        self.count, self.longest = len(members), max(contexts)
        slots = np.empty((self.count, self.longest), dtype=np.int64)
        for row, (_, span) in zip(slots, members, strict=True):
            blocks = np.asarray(span.sequence.blocks[: -(-span.end // pool.block_size)]) * pool.block_size
            row[: span.end] = (blocks[:, None] + np.arange(pool.block_size)).ravel()[: span.end]
            row[span.end :] = blocks[0]
        self._slots = torch.from_numpy(slots.ravel()).to(device)
        self.mask = None
        """[count, 1, length, longest]."""
        if self.length > 1 or min(contexts) < self.longest:
            positions = torch.tensor([range(span.start, span.end) for _, span in members], device=device)
            self.mask = _mask(positions, self.longest, pool).unsqueeze(1)

    def entries(self, layer: int) -> torch.Tensor:
        """[count, longest, entry_width], a copy."""
        return self._pool.layer_tokens[layer].index_select(0, self._slots).view(self.count, self.longest, -1)


Contexts = list[SpanContext | DecodeGroup]


def plan_contexts(batch: Batch, pool: KVPool) -> Contexts:
    """Every row of the batch in exactly one context."""
    contexts: Contexts = []
    short: dict[tuple[int, int], list[tuple[int, Span]]] = defaultdict(list)
    row = 0
    for span in batch.spans:
        if span.length <= DECODE_LENGTH and span.end <= GATHERED_CONTEXT:
            # Contexts of like length together: padding at most doubles the work.
            short[span.length, span.end.bit_length()].append((row, span))
        else:
            contexts.append(SpanContext(pool, row, span))
        row += span.length
    alone = [members[0] for members in short.values() if len(members) == 1]
    groups = [members for members in short.values() if len(members) > 1]
    contexts += [SpanContext(pool, *member) for member in alone]
    contexts += [DecodeGroup(pool, members) for members in groups]
    return contexts


def _mask(positions: torch.Tensor, size: int, pool: KVPool) -> torch.Tensor:
    """[..., size] for queries at `positions` [...]: each sees itself and what came before."""
    hidden = torch.arange(size, device=positions.device) > positions.unsqueeze(-1)
    return torch.zeros(hidden.shape, dtype=pool.dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
