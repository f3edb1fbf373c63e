"""A decode worker as the prefill side knows it: its landing zone, and which writes may go there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kvtransfer.landing import BARRIER_BLOCKS
from kvtransfer.layout import WORD_BYTES
from kvtransfer.transfer import Region, Transfer
from kvtransfer.transport import Descriptors
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, PeerGone
from protocol.ids import Incarnation

REMEMBERED_ZONES = 16
"""Of one decode worker: a lease is seldom older than one renewal."""


@dataclass(frozen=True)
class Peer:
    name: str
    incarnation: Incarnation
    metadata: bytes
    """The transport's own; see Transport.metadata."""
    landing_address: int
    landing_blocks: int
    """With the barrier's, which are the last."""
    block_bytes: int
    earlier_zones: Mapping[int, int] = field(default_factory=dict)
    """Landing blocks by address: zones that were introduced before this one, for leases that still lie there."""

    def check_lease(self, lease: cluster_pb2.WriteLease, blocks: int, layers: int) -> None:
        """Raises InvalidRequest for a lease that reaches outside its zone or does not fit the blocks, PeerGone when the zone
        was not introduced: another introduction helps."""
        zone_blocks = self.zones.get(lease.landing_address)
        if zone_blocks is None:
            raise PeerGone(f"{self.name}'s landing zone at {lease.landing_address:x} has not been introduced")
        end = lease.first_landing_block + layers * lease.blocks
        if lease.blocks != blocks or end > zone_blocks - BARRIER_BLOCKS:
            raise InvalidRequest(
                f"lease of {layers} x {lease.blocks} landing blocks at {lease.first_landing_block} does not fit "
                f"{blocks} KV blocks and a zone of {zone_blocks}"
            )

    @property
    def zones(self) -> Mapping[int, int]:
        """Landing blocks by address."""
        return {**self.earlier_zones, self.landing_address: self.landing_blocks}

    def after(self, earlier: "Peer") -> "Peer":
        """This introduction, with what an earlier one of the same process said."""
        kept = list(earlier.zones.items())[-REMEMBERED_ZONES:]
        return replace(self, earlier_zones=dict(kept))

    @property
    def zone_bytes(self) -> int:
        return self.landing_blocks * self.block_bytes

    def descriptors(
        self, transfer: Transfer, region: Region, pool_address: int, pool_blocks: int
    ) -> tuple[Descriptors, Descriptors]:
        """Local and remote runs of a region: one per layer and contiguous run of pool blocks."""
        runs = transfer.blocks.runs(region.first_block, region.first_block + region.blocks)
        firsts = np.array([run.first for run in runs], dtype=np.int64)
        positions = np.array([run.position for run in runs], dtype=np.int64)
        counts = np.array([run.blocks for run in runs], dtype=np.int64)
        layers = np.arange(region.first_layer, region.first_layer + region.layers, dtype=np.int64)[:, None]
        local_blocks = layers * pool_blocks + firsts
        remote_blocks = transfer.landing_block(0, 0) + layers * len(transfer.blocks) + positions
        lengths = np.broadcast_to(counts, local_blocks.shape).ravel() * self.block_bytes
        local = np.stack([local_blocks.ravel() * self.block_bytes + pool_address, lengths], axis=1)
        remote = np.stack([remote_blocks.ravel() * self.block_bytes + transfer.landing_address, lengths], axis=1)
        return local.astype(np.uint64), remote.astype(np.uint64)

    def barrier_descriptors(self, pool_address: int) -> tuple[Descriptors, Descriptors]:
        """One word of whatever is in the pool, into the zone's barrier block."""
        barrier = self.landing_address + (self.landing_blocks - BARRIER_BLOCKS) * self.block_bytes
        local = np.array([[pool_address, WORD_BYTES]], dtype=np.uint64)
        return local, np.array([[barrier, WORD_BYTES]], dtype=np.uint64)
