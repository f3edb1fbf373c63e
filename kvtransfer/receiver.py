"""The decode side: leases landing slots, copies what has landed into the pool, verifies the copy.

One thread owns the transport. The asyncio side calls `reserve`, `cancel`, `release` and `peer_gone`; they return at once (they
wait at most for one piece of a copy, about 0.1 ms). `Lease.done` tells the rest.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch

from kvtransfer.config import TransferConfig
from kvtransfer.device import own_stream
from kvtransfer.landing import SlotState
from kvtransfer.layout import KVLayout
from kvtransfer.lease import Lease
from kvtransfer.lease_book import LeaseBook
from kvtransfer.notification import MalformedNotification, WriteNotification
from kvtransfer.pace import Pace
from kvtransfer.pool_copy import PoolCopy
from kvtransfer.self_check import SelfCheck
from kvtransfer.transport import Transport, agent_name
from protocol.errors import LeaseExpired, PeerGone, ServalError, TransferFailed
from protocol.ids import BlockId, Incarnation, RequestId
from telemetry.metrics import Metrics

log = logging.getLogger(__name__)

SWEEP_S = 0.01
"""Between two rounds of the janitor."""


class Receiver:
    """One per decode process. Every slot has one owner (its lease), one deadline and one way back: `LandingZone.apply`.

    The janitor runs on the receiver's own clock: a lease that nobody ends is expired and its slot quarantined. Such a slot
    comes back by `release(lease, quiesced=True)` or by `peer_gone`, never by time alone.
    """

    def __init__(
        self,
        config: TransferConfig,
        layout: KVLayout,
        pool: torch.Tensor,
        incarnation: Incarnation,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._layout = layout
        self._incarnation = incarnation
        self._metrics = metrics
        self._copy = PoolCopy(layout, pool)
        self._device = pool.device
        self._book = LeaseBook(config, layout, pool, metrics)
        self._transport = Transport(incarnation, config)
        self._transport.register(self._book.zone.words)
        self._metadata = self._transport.metadata()
        self._self_check = SelfCheck(self._transport, config, pool.device)
        self._pace = Pace(config)
        self._swept_s = self._renewed_s = time.monotonic()
        self._unread: deque[tuple[str, bytes]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="kv-receiver", daemon=True)
        self._thread.start()

    # ---- for IntroduceRequest

    @property
    def metadata(self) -> bytes:
        return self._metadata

    @property
    def fingerprint(self) -> str:
        return self._layout.fingerprint

    @property
    def landing_address(self) -> int:
        """It changes when the zone is renewed, and so does the metadata: introduce again."""
        return self._book.zone.address

    @property
    def landing_blocks(self) -> int:
        """With the barrier's, which are the last."""
        return self._book.zone.blocks

    @property
    def max_blocks(self) -> int:
        """The most pool blocks that one lease can cover: a longer prompt cannot be received by this zone."""
        return self._book.max_blocks

    # ---- leases

    def reserve(self, request_id: RequestId, attempt: int, peer: Incarnation, pool_blocks: Sequence[BlockId]) -> Lease:
        """A landing slot for all layers of `pool_blocks` (their order is the request's), to be written by `peer`.

        Raises Overloaded when no slot is free now, InvalidRequest when none ever could be.
        """
        lease = self._book.reserve(request_id, attempt, peer, pool_blocks)
        self._wake.set()
        return lease

    def cancel(self, lease: Lease) -> None:
        """The request ended early: after this returns nothing is copied into its pool blocks. The slot waits for `release`."""
        lease.fail(TransferFailed("cancelled"))
        self._book.cancel(lease)

    def release(self, lease: Lease, quiesced: bool) -> None:
        """Ends a lease. quiesced: the peer said that no write of it can happen any more, so the slot is free; otherwise it is
        quarantined until a later release says quiesced, or `peer_gone`. A lease that is gone already is left alone.
        """
        lease.fail(TransferFailed("the lease was released before everything had landed"))
        self._book.release(lease, quiesced)

    def peer_gone(self, peer: Incarnation) -> None:
        """The caller has proof that the peer's process no longer exists: its slots are pumped for `pump_s`, then free."""
        gone = self._book.of_peer(peer)
        for lease in gone:
            lease.fail(PeerGone(f"prefill worker {peer:016x} is gone"))
        self._book.pump(gone)
        self._wake.set()

    def blocks_by_state(self) -> dict[SlotState, int]:
        """Landing blocks by the state of their slot."""
        return self._book.blocks_by_state()

    def check_integrity(self) -> None:
        """Asserts that every landing block has exactly one owner."""
        self._book.check_integrity()

    @property
    def is_alive(self) -> bool:
        """False: the receiver thread has ended and nothing can land any more."""
        return self._thread.is_alive()

    @property
    def proofs(self) -> int:
        """Writes that have arrived so far, in here or from here to itself: while it grows, the transport works."""
        return self._self_check.proofs

    def close(self, deadline_s: float = 5.0) -> bool:
        """Fails open leases and destroys the agent. False when the thread did not end in time (it is left behind)."""
        self._stopping = True
        self._wake.set()
        self._thread.join(deadline_s)
        self._book.keep_mapped()
        return not self._thread.is_alive()

    # ---- the receiver thread

    def _run(self) -> None:
        with own_stream(self._device):
            while not self._stopping:
                self._step()
                self._wait()
        for lease in self._book.all:
            lease.fail(TransferFailed("the receiver is closing"))
        self._transport.close()

    def _wait(self) -> None:
        # Quarantine may last for as long as an unreachable peer lives: it does not keep the thread busy.
        if any(lease.slot.state is not SlotState.QUARANTINED for lease in self._book.all):
            time.sleep(self._pace.interval_s())
        else:
            self._wake.wait(self._config.idle_poll_s)
            self._wake.clear()
            self._pace.progressed()

    def _step(self) -> None:
        try:
            self._read_notifications()
            while self._unread:
                self._receive(*self._unread.popleft())
                self._pace.progressed()
            self._self_check.step()
            if time.monotonic() >= self._swept_s + SWEEP_S:
                self._expire_and_free()
        except ServalError as error:
            # One peer's failure; the others' transfers go on.
            log.warning("KV receiver: %s", error)
            self._metrics.kv_transfer_failures.of(reason="receiver").inc()

    def _read_notifications(self) -> None:
        self._unread.extend(self._transport.notifications())

    def _receive(self, sender_name: str, data: bytes) -> None:
        try:
            notification = WriteNotification.decode(data)
        except MalformedNotification as error:
            log.warning("dropped a notification of %s: %s", sender_name, error)
            self._drop("malformed")
            return
        lease = self._book.get(notification.lease_id)
        reason = self._reason_to_drop(sender_name, notification, lease)
        if reason is not None:
            self._drop(reason)
            return
        assert lease is not None
        try:
            self._land(lease, notification)
        except Exception as error:
            log.exception("KV of %s could not be copied", lease.request_id)
            lease.fail(TransferFailed(f"unexpected {type(error).__name__}: {error}"))

    def _reason_to_drop(self, sender_name: str, notification: WriteNotification, lease: Lease | None) -> str | None:
        if notification.receiver != self._incarnation:
            return "foreign"
        if sender_name != agent_name(notification.sender):
            return "wrong_peer"
        if lease is None:
            return "unknown_lease"
        return lease.reason_to_drop(notification)

    def _drop(self, reason: str) -> None:
        self._metrics.kv_notifications_dropped.of(reason=reason).inc()

    def _land(self, lease: Lease, notification: WriteNotification) -> None:
        """Copies a landed write into the pool, verifies the copy, and ends the lease when it was the last."""
        self._self_check.note_work()
        lease.mark_arrived(notification, notification.layers * notification.blocks * self._layout.block_bytes)
        self._corrupt_sometimes(lease, notification)
        started_s = time.monotonic()
        digests = self._copy.land(lease.slot.zone.words, lease, notification, self._config.digest, self._read_notifications)
        self._metrics.kv_digest_time.of().inc(time.monotonic() - started_s)
        if digests is None or not lease.is_open:
            return
        wrong = [
            notification.first_layer + index
            for index, (found, sent) in enumerate(zip(digests, notification.digests, strict=False))
            if found != sent
        ]
        if self._config.digest and (wrong or not notification.digests):
            self._metrics.kv_digest_mismatches.of().inc(len(wrong))
            self._metrics.kv_transfer_failures.of(reason="digest").inc()
            lease.fail(TransferFailed(f"digest of layers {wrong} differs" if wrong else "the sender computes no digests"))
        elif lease.has_all:
            self._metrics.kv_transfer_bytes.of().inc(lease.bytes)
            self._metrics.kv_transfer_time.of().observe(time.monotonic() - lease.first_landed_s)
            lease.complete()

    def _corrupt_sometimes(self, lease: Lease, notification: WriteNotification) -> None:
        one_in = self._config.corrupt_one_in
        if one_in and random.randrange(one_in) == 0:
            landed, _ = lease.rows(notification, self._device)
            block = lease.slot.zone.words[landed.piece(0, 1)].view(torch.uint8)
            block[0, random.randrange(self._layout.block_bytes)] ^= 1 << random.randrange(8)

    def _expire_and_free(self) -> None:
        """The janitor."""
        now_s = time.monotonic()
        expired = self._book.expire(now_s)
        self._book.count_pumped(now_s - self._swept_s)
        self._swept_s = now_s
        for lease in expired:
            if lease.is_open:
                self._metrics.kv_transfer_failures.of(reason="expired").inc()
            lease.fail(LeaseExpired(f"not everything had landed after {lease.duration_s} s"))
        self._renew_zone(now_s)  # last: there may be no memory for one

    def _renew_zone(self, now_s: float) -> None:
        """Where proof does not come: what waits for it is left alone for ever, with its addresses."""
        latest_s = now_s - self._config.renew_after_s
        if self._renewed_s < latest_s and self._book.needs_zone(latest_s):
            self._renewed_s = now_s  # also where there is no memory: it is not asked for at every step
            zone = self._book.next_zone()
            self._transport.register(zone.words)
            self._metadata = self._transport.metadata()
            self._book.renew(zone)
            self._metrics.kv_zones_renewed.of().inc()
            log.warning("nobody can tell whether writes to the landing zone are over; another takes its place")
        for old in self._book.retire_settled():
            self._transport.unregister(old.words)

    def __repr__(self) -> str:
        return f"Receiver({self._incarnation:016x} {len(self._book)} leases {self._book.blocks_by_state()})"
