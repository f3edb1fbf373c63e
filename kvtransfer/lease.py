"""A write lease as the decode side sees it: what may land where, what has landed, and the result."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from kvtransfer.blocks import BlockList, Rows
from kvtransfer.landing import Slot
from kvtransfer.notification import WriteNotification, request_key
from protocol import cluster_pb2
from protocol.errors import ServalError
from protocol.ids import Incarnation, LeaseId, RequestId


@dataclass(frozen=True)
class Landed:
    """Every layer of every block is in the pool and verified."""

    bytes: int
    first_landed_s: float
    """time.monotonic() when the first notification was read."""
    last_verified_s: float
    """time.monotonic() when the last layer was verified."""
    writes: int


class Lease:
    """Made by `Receiver.reserve`; given back exactly once through `Receiver.release`, or taken by `Receiver.peer_gone`.

    `done` resolves to Landed, or raises TransferFailed (a digest differed, the peer is gone, it was cancelled) or LeaseExpired.
    The pool blocks belong to the transfer until then: nothing is copied into them afterwards. A waiter cannot cancel it.
    """

    def __init__(
        self,
        lease_id: LeaseId,
        request_id: RequestId,
        attempt: int,
        peer: Incarnation,
        slot: Slot,
        layers: int,
        pool_blocks: BlockList,
        duration_s: float,
    ) -> None:
        self.lease_id = lease_id
        self.request_id = request_id
        self.attempt = attempt
        self.peer = peer
        self.slot = slot
        self.pool_blocks = pool_blocks
        self.duration_s = duration_s
        self.deadline_s = time.monotonic() + duration_s
        """On this process's clock. The slot outlives it until the peer has confirmed or is gone."""
        self.done: Future[Landed] = Future()
        self.done.set_running_or_notify_cancel()
        self.copying = threading.Lock()
        """Held for each piece that is copied into the pool."""
        self.is_open = True
        """False: drop notifications, copy nothing."""
        self.quarantined_s: float | None = None
        """time.monotonic() since when its slot waits for proof."""
        self.bytes = 0
        self.writes = 0
        self.first_landed_s = 0.0
        self._key = request_key(request_id)
        self._arrived = np.zeros((layers, len(self.pool_blocks)), dtype=np.bool_)

    def to_proto(self) -> cluster_pb2.WriteLease:
        return cluster_pb2.WriteLease(
            lease_id=self.lease_id,
            first_landing_block=self.slot.first_block,
            blocks=len(self.pool_blocks),
            duration_s=self.duration_s,
            landing_address=self.slot.zone.address,
        )

    def reason_to_drop(self, notification: WriteNotification) -> str | None:
        """Why the notification is not one of an expected write of this lease (a metric label), or None when it is."""
        layers, blocks = self._arrived.shape
        if not self.is_open:
            return "closed"
        if notification.sender != self.peer:
            return "wrong_peer"
        if notification.request_key != self._key:
            return "wrong_request"
        if notification.attempt != self.attempt:
            return "wrong_attempt"
        if notification.first_layer + notification.layers > layers or notification.first_block + notification.blocks > blocks:
            return "out_of_range"
        if self._region(notification).any():
            return "duplicate"
        return None

    def mark_arrived(self, notification: WriteNotification, size_bytes: int) -> None:
        """The write is one of this lease's (`reason_to_drop` said so) and will be copied and verified now."""
        if not self.writes:
            self.first_landed_s = time.monotonic()
        self._region(notification)[:] = True
        self.writes += 1
        self.bytes += size_bytes

    @property
    def has_all(self) -> bool:
        return bool(self._arrived.all())

    def rows(self, notification: WriteNotification, device: torch.device) -> tuple[Rows, Rows]:
        """Where a write landed and where it goes: rows of the zone and of the pool, in the same order, layer by layer.

        Block b of layer l lands at first + l * blocks + b: protocol/cluster.proto's WriteLease.
        """
        begin, end = notification.first_block, notification.first_block + notification.blocks
        layer = np.arange(notification.first_layer, notification.first_layer + notification.layers, dtype=np.int64)[:, None]
        landed = self.slot.first_block + layer * len(self.pool_blocks) + np.arange(begin, end, dtype=np.int64)
        pool = self.pool_blocks.rows(notification.first_layer, notification.layers, begin, end)
        return Rows(landed.ravel(), device), Rows(pool, device)

    def complete(self) -> None:
        """Every block was verified."""
        with self.copying:
            if self.is_open:
                self.is_open = False
                self.done.set_result(Landed(self.bytes, self.first_landed_s, time.monotonic(), self.writes))

    def fail(self, error: ServalError) -> None:
        """Ends an open lease with an error; one that has ended keeps its end. After it returns nothing is copied any more."""
        with self.copying:
            if self.is_open:
                self.is_open = False
                self.done.set_exception(error)

    def _region(self, notification: WriteNotification) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        first_layer, first_block = notification.first_layer, notification.first_block
        return self._arrived[first_layer : first_layer + notification.layers, first_block : first_block + notification.blocks]

    def __repr__(self) -> str:
        return f"Lease({self.lease_id} {self.request_id}#{self.attempt} {self.slot} {int(self._arrived.sum())} arrived)"
