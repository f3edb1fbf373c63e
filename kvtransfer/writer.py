"""Posts a transfer's writes and sees to their end."""

import time

import torch

from kvtransfer.config import TransferConfig
from kvtransfer.layout import KVLayout
from kvtransfer.notification import WriteNotification
from kvtransfer.peer import Peer
from kvtransfer.pool_digest import PoolDigest
from kvtransfer.transfer import PostedWrite, Region, SendResult, Transfer
from kvtransfer.transport import Transport
from protocol.errors import LeaseExpired, TransferFailed
from protocol.ids import Incarnation
from telemetry.metrics import Metrics


class Writer:
    """Used by the sender thread only."""

    def __init__(
        self,
        config: TransferConfig,
        layout: KVLayout,
        pool: torch.Tensor,
        incarnation: Incarnation,
        transport: Transport,
        metrics: Metrics,
    ) -> None:
        self._write_timeout_s = config.write_timeout_s
        self._layout = layout
        self._pool = pool
        self._incarnation = incarnation
        self._transport = transport
        self._metrics = metrics
        self._digest = PoolDigest(layout, pool, config.digest)

    def post(self, peer: Peer, transfer: Transfer, region: Region) -> None:
        """Posts one region with its notification. Raises LeaseExpired, PeerGone or TransferFailed."""
        notification = self._notification(transfer, region)
        local, remote = peer.descriptors(transfer, region, self._pool.data_ptr(), self._pool.shape[1])
        posted_s = time.monotonic()
        if posted_s > transfer.deadline_s:
            raise LeaseExpired("the write lease ended before everything was written")
        statistics = transfer.statistics
        statistics.first_post_s = statistics.first_post_s or posted_s
        # Before the post: one that raises may have sent some of its bytes.
        statistics.writes += 1
        write = self._transport.write(transfer.peer, local, remote, notification.encode())
        transfer.in_flight.append(PostedWrite(write, posted_s))
        transfer.mark_posted(region)
        statistics.descriptors += local.shape[0]
        statistics.bytes += region.layers * region.blocks * self._layout.block_bytes
        self._metrics.kv_transfer_post_time.of().observe(time.monotonic() - posted_s)

    def poll(self, transfer: Transfer) -> bool:
        """Whether a write ended well. Raises PeerGone or TransferFailed, the latter also when a write takes too long."""
        moved = False
        for posted in list(transfer.in_flight):
            if posted.write.poll():
                transfer.in_flight.remove(posted)
                posted.write.release()
                transfer.statistics.writes_done += 1
                transfer.statistics.last_done_s = time.monotonic()
                moved = True
            elif time.monotonic() > posted.posted_s + self._write_timeout_s:
                raise TransferFailed(f"the decode worker took no write for {self._write_timeout_s} s")
        return moved

    def abandon(self, transfer: Transfer) -> bool:
        """Gives up what is in flight. True when some of it may still land: releasing a handle does not stop its bytes."""
        while transfer.in_flight:
            transfer.in_flight.pop().write.release()
        return transfer.statistics.writes != transfer.statistics.writes_done

    def count(self, result: SendResult) -> None:
        """What an ended transfer was, in the metrics."""
        self._metrics.kv_transfer_bytes.of().inc(result.bytes)
        self._metrics.kv_transfer_writes.of().inc(result.writes)
        self._metrics.kv_transfer_descriptors.of().inc(result.descriptors)
        if result.error is None:
            self._metrics.kv_transfer_time.of().observe(result.seconds)
            self._metrics.kv_transfer_exposed.of().observe(result.exposed_s)

    def _notification(self, transfer: Transfer, region: Region) -> WriteNotification:
        digests = self._digest.of_region(transfer, region)
        self._metrics.kv_digest_time.of().inc(self._digest.last_seconds)
        return WriteNotification(
            sender=self._incarnation,
            receiver=transfer.peer,
            lease_id=transfer.lease_id,
            request_key=transfer.request_key,
            attempt=transfer.attempt,
            sequence=transfer.statistics.writes,
            first_layer=region.first_layer,
            layers=region.layers,
            first_block=region.first_block,
            blocks=region.blocks,
            digests=tuple(digests),
        )
