"""Copies landed layers into the pool and digests the copy while it is in the processor's cache."""

from collections.abc import Callable

import torch

from kvtransfer.device import wait_for_stream
from kvtransfer.digest import BlockDigest
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
        source, target = lease.rows(notification, landing.device)
        sums = torch.empty(len(target), dtype=torch.int64, device=landing.device)
        for begin in range(0, len(target), self._digest.chunk_blocks):
            piece = slice(begin, min(len(target), begin + self._digest.chunk_blocks))
            rows = target.piece(piece.start, piece.stop)
            with lease.copying:
                if not lease.is_open:
                    return None
                landed = source.piece(piece.start, piece.stop)
                self._digest.blocks.copy(landing, landed, self._words, rows, sums[piece] if verify else None)
                wait_for_stream(landing.device)
            between_pieces()
        shape = (notification.layers, notification.blocks)
        return self._digest.combine(sums.view(shape), notification.first_block) if verify else []
