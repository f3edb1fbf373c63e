"""Digests of what is about to be written, taken from the prefill worker's pool right before the post."""

import time

import torch

from kvtransfer.digest import BlockDigest, unsigned
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
        digests = []
        if self._enabled:
            end = region.first_block + region.blocks
            for layer in range(region.first_layer, region.first_layer + region.layers):
                total = torch.zeros((), dtype=torch.int64, device=self._words.device)
                for begin in range(region.first_block, end, self._digest.chunk_blocks):
                    piece = transfer.blocks.select(begin, min(end, begin + self._digest.chunk_blocks))
                    total += self._digest.of_chunk(self._words[layer], piece, begin)
                digests.append(total)
        found = unsigned(digests)
        self.last_seconds = time.monotonic() - started_s
        return found
