"""Decode attention over block tables on the device: what is attended to hangs on no shape, so a step of it can be replayed.

Each sequence has as many query rows as every other; heads that share a KV entry are further rows, which read it once for them all.
On a GPU a kernel walks the tables (engine/attention/paged_kernel.py). Elsewhere the contexts are gathered to their greatest length:
the same numbers without a kernel, for machines where replaying gains nothing anyway.
"""

import os
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.kv_pool import KVPool


@dataclass(frozen=True)
class BlockTables:
    """Where the contexts of one step's sequences lie."""

    blocks: torch.Tensor
    """int32 [sequences, most blocks of one]. What is behind a context's last block means nothing, but is a block of the pool."""
    positions: torch.Tensor
    """int64 [sequences * rows each]: a row sees the positions up to its own. A sequence's rows are in ascending order."""

    @property
    def sequences(self) -> int:
        return self.blocks.shape[0]

    @property
    def rows_each(self) -> int:
        return self.positions.shape[0] // self.sequences


@dataclass(frozen=True)
class EntryHeads:
    """How a KV entry is read: `kv_heads` keys from `keys_from` on, and as many values from `values_from` on; a latent's value is
    the beginning of its only key."""

    heads: int
    """Of the queries."""
    kv_heads: int
    key_width: int
    value_width: int
    keys_from: int
    values_from: int
    scale: float

    @property
    def is_latent(self) -> bool:
        return self.keys_from == self.values_from

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class PagedPlan:
    """What all layers of one step share. `gathered`: without a kernel, the slots [sequences, longest], flat, and what to add to the
    scores, [sequences, 1, rows each * group, longest]."""

    tables: BlockTables
    gathered: tuple[torch.Tensor, torch.Tensor] | None


class PagedAttention:
    """Attends to a pool's entries through block tables."""

    def __init__(self, pool: KVPool, heads: EntryHeads) -> None:
        self._pool = pool
        self._heads = heads
        # Triton itself runs its kernels on a CPU where this is set.
        self._uses_kernel = pool.data.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"

    def plan(self, tables: BlockTables) -> PagedPlan:
        return PagedPlan(tables, None if self._uses_kernel else self._gather(tables))

    def attend(self, layer: int, query: torch.Tensor, plan: PagedPlan) -> torch.Tensor:
        """`query` [rows, heads, key_width], of any strides but the last → [rows, heads, value_width]."""
        entries = self._pool.layer_tokens[layer]
        if plan.gathered is None:
            from engine.attention.paged_kernel import attend  # only where there is Triton

            return attend(query, entries, plan.tables, self._heads, self._pool.block_size)
        return _attend_gathered(query, entries, plan.tables, plan.gathered, self._heads)

    def _gather(self, tables: BlockTables) -> tuple[torch.Tensor, torch.Tensor]:
        """What pads a context is its own first entry, masked: no sequence ever reads another's values, not even to weigh them with
        0."""
        block_size, device = self._pool.block_size, tables.blocks.device
        places = torch.arange(tables.blocks.shape[1] * block_size, device=device)
        slots = (tables.blocks.long() * block_size).repeat_interleave(block_size, dim=1) + places % block_size
        positions = tables.positions.view(tables.sequences, 1, tables.rows_each, 1)
        hidden = places > positions
        slots = torch.where(hidden[:, 0, -1], slots[:, :1], slots)
        mask = torch.zeros(hidden.shape, dtype=self._pool.dtype, device=device).masked_fill_(hidden, float("-inf"))
        return slots.flatten(), mask.repeat_interleave(self._heads.group, dim=2)


def _attend_gathered(
    query: torch.Tensor,
    entries: torch.Tensor,
    tables: BlockTables,
    gathered: tuple[torch.Tensor, torch.Tensor],
    heads: EntryHeads,
) -> torch.Tensor:
    slots, mask = gathered
    sequences, rows, kv_heads, group = tables.sequences, tables.rows_each, heads.kv_heads, heads.group
    context = entries.index_select(0, slots).view(sequences, mask.shape[-1], -1)

    def parts(begin: int) -> torch.Tensor:
        """[sequences, kv_heads, longest, key_width]: torch's fused kernels take keys and values of one width only."""
        width = kv_heads * heads.key_width
        return context[..., begin : begin + width].view(sequences, -1, kv_heads, heads.key_width).transpose(1, 2)

    queries = query.reshape(sequences, rows, kv_heads, group, heads.key_width).transpose(1, 2)
    attended = scaled_dot_product_attention(
        queries.reshape(sequences, kv_heads, rows * group, heads.key_width),
        parts(heads.keys_from),
        parts(heads.values_from),
        attn_mask=mask,
        scale=heads.scale,
    )
    attended = attended[..., : heads.value_width].reshape(sequences, kv_heads, rows, group, heads.value_width)
    return attended.transpose(1, 2).reshape(sequences * rows, heads.heads, heads.value_width)
