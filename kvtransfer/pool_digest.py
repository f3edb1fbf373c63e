"""Digests of what is about to be written, taken from the prefill worker's pool right before the post."""

import time

import torch

from kvtransfer.blocks import Rows
from kvtransfer.digest import BlockDigest
from kvtransfer.layout import KVLayout
from kvtransfer.transfer import Region, Transfer


class PoolDigest:
    """Used by the sender thread only."""

    def __init__(self, layout: KVLayout, pool: torch.Tensor, enabled: bool) -> None:
        self._words = layout.words_of(pool)
        self._digest = BlockDigest(layout.block_words, pool.device)
        self._enabled = enabled
        self.last_seconds = 0.0
        """What the last `of_region` took."""

    def of_region(self, transfer: Transfer, region: Region) -> list[int]:
        """One digest per layer of the region (none when disabled). On return the region is in memory and may be written out."""
        started_s = time.monotonic()
        for event in transfer.events_of(region):
            event.synchronize()
        found = self._digests(transfer, region) if self._enabled else []
        self.last_seconds = time.monotonic() - started_s
        return found

    def _digests(self, transfer: Transfer, region: Region) -> list[int]:
        end = region.first_block + region.blocks
        rows = Rows(transfer.blocks.rows(region.first_layer, region.layers, region.first_block, end), self._words.device)
        sums = torch.empty(len(rows), dtype=torch.int64, device=self._words.device)
        for begin in range(0, len(rows), self._digest.chunk_blocks):
            piece = slice(begin, min(len(rows), begin + self._digest.chunk_blocks))
            self._digest.blocks.sum(self._words, rows.piece(piece.start, piece.stop), sums[piece])
        return self._digest.combine(sums.view(region.layers, region.blocks), region.first_block)
