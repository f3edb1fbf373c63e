"""Copies landed layers into the pool and digests the copy, piece by piece while a piece is in the processor's cache."""

from collections.abc import Callable

import torch

from kvtransfer.device import wait_for_stream
from kvtransfer.digest import BlockDigest, unsigned
from kvtransfer.layout import KVLayout
from kvtransfer.lease import Lease
from kvtransfer.notification import WriteNotification


class PoolCopy:
    """The receiver's way into the pool. Used by its thread only."""

    def __init__(self, layout: KVLayout, pool: torch.Tensor) -> None:
        self._words = layout.words_of(pool)
        self._digest = BlockDigest(layout.block_words, pool.device)

    def land(
        self,
        landing: torch.Tensor,
        lease: Lease,
        notification: WriteNotification,
        verify: bool,
        between_pieces: Callable[[], None],
    ) -> list[int] | None:
        """Copies one landed write; returns the digest of each of its layers as found in the pool (none if not `verify`).

        Returns None when the lease was closed meanwhile: from then on nothing more is copied. `between_pieces` is called after
        each piece, so that the transport progresses during a long copy.
        """
        digests = []
        begin, end = notification.first_block, notification.first_block + notification.blocks
        for layer in range(notification.first_layer, notification.first_layer + notification.layers):
            total = torch.zeros((), dtype=torch.int64, device=landing.device)
            for position in range(begin, end, self._digest.chunk_blocks):
                count = min(self._digest.chunk_blocks, end - position)
                with lease.copying:
                    if not lease.is_open:
                        return None
                    piece = self._copy_piece(landing, lease, layer, position, count)
                    if verify:
                        total += self._digest.of_chunk(self._words[layer], piece, position)
                    wait_for_stream(landing.device)
                between_pieces()
            digests.append(total)
        return unsigned(digests) if verify else []

    def _copy_piece(self, landing: torch.Tensor, lease: Lease, layer: int, position: int, count: int) -> slice | torch.Tensor:
        source = lease.landing_block(layer, position)
        landed = landing[source : source + count]
        target = lease.pool_blocks.select(position, position + count)
        if isinstance(target, slice):
            self._words[layer, target].copy_(landed)
        else:
            self._words[layer].index_copy_(0, target, landed)
        return target
