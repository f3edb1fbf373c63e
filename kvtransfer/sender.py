"""The prefill side: writes a prompt's KV into a decode worker's landing slot, layer by layer while prefill computes.

One thread owns the transport. Other threads hand it work and get futures; nothing here waits on them.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from kvtransfer.blocks import BlockList
from kvtransfer.config import TransferConfig
from kvtransfer.connections import Connections
from kvtransfer.device import own_stream
from kvtransfer.fences import Fences
from kvtransfer.inbox import Inbox
from kvtransfer.layout import KVLayout
from kvtransfer.pace import Pace
from kvtransfer.peer import Peer
from kvtransfer.quiesce import Barriers
from kvtransfer.self_check import SelfCheck
from kvtransfer.spent import SpentLeases
from kvtransfer.transfer import Transfer, lease_end
from kvtransfer.transport import Transport
from kvtransfer.unconfirmed import LeaseKey
from kvtransfer.writer import Writer
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, LeaseExpired, PeerGone, ServalError, TransferAborted, TransferFailed
from protocol.ids import BlockId, Incarnation, LeaseId, RequestId
from telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Sender:
    """One per prefill process. An error of one peer ends that peer's transfers and nothing else."""

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
        self._pool = pool
        self._incarnation = incarnation
        self._metrics = metrics
        self._transport = Transport(incarnation, config)
        self._transport.register(pool)
        self._self_check = SelfCheck(self._transport, config, pool.device)
        self._writer = Writer(config, layout, pool, incarnation, self._transport, metrics)
        self._barriers = Barriers(self._transport, pool.data_ptr(), config.barrier_timeout_s)
        self._lock = threading.Lock()
        self._connections = Connections(self._transport)
        self._fences = Fences(self._connections, self._barriers)
        self._transfers: dict[LeaseKey, Transfer] = {}
        self._spent = SpentLeases()
        self._pace = Pace(config)
        self._wake = threading.Event()
        self._inbox = Inbox(self._wake.set)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="kv-sender", daemon=True)
        self._thread.start()

    # ---- any thread

    def introduce(
        self,
        name: str,
        incarnation: Incarnation,
        metadata: bytes,
        landing_address: int,
        landing_blocks: int,
        fingerprint: str,
    ) -> "Future[None]":
        """Makes a decode worker's landing zone known. Idempotent; a zone at another address is one more. An older incarnation
        of the same name is removed.

        The future raises InvalidRequest when the layouts differ, TransferFailed when the metadata or the zone is not as said.
        """
        peer = Peer(name, incarnation, metadata, landing_address, landing_blocks, self._layout.block_bytes)
        if fingerprint != self._layout.fingerprint:
            failed: Future[None] = Future()
            failed.set_exception(
                InvalidRequest(f"KV layouts differ: {name} has {fingerprint}, this worker {self._layout.fingerprint}")
            )
            return failed
        return self._inbox.submit(lambda: self._add_peer(peer))

    def open(
        self,
        request_id: RequestId,
        attempt: int,
        decode_incarnation: Incarnation,
        lease: cluster_pb2.WriteLease,
        pool_blocks: Sequence[BlockId],
    ) -> Transfer:
        """Starts a transfer of `pool_blocks` (in the request's order), all layers, under `lease`, received now.

        Raises PeerGone for a peer that was not introduced, LeaseExpired for a lease that was opened before or aborted,
        InvalidRequest for one that does not fit.
        """
        key = (decode_incarnation, LeaseId(lease.lease_id))
        blocks = BlockList(pool_blocks, self._pool.shape[1])
        peer = self._connections.known(decode_incarnation)
        if peer is None:
            raise PeerGone(f"decode worker {decode_incarnation:016x} has not been introduced")
        peer.check_lease(lease, len(blocks), self._layout.layers)
        with self._lock:
            if key in self._spent or key in self._transfers or key in self._fences:
                raise LeaseExpired(f"lease {lease.lease_id} was opened before or aborted")
            self._spent.add(key)
            transfer = Transfer(
                request_id=request_id,
                attempt=attempt,
                peer=decode_incarnation,
                lease_id=key[1],
                landing_address=lease.landing_address,
                first_landing_block=lease.first_landing_block,
                blocks=blocks,
                layers=self._layout.layers,
                block_bytes=self._layout.block_bytes,
                deadline_s=lease_end(lease, self._config.lease_margin_s),
                config=self._config,
                on_progress=self._wake.set,
                records_events=self._pool.is_cuda,
            )
            self._transfers[key] = transfer
        self._wake.set()
        return transfer

    def abort(self, decode_incarnation: Incarnation, lease_id: LeaseId) -> "Future[bool]":
        """Ends a lease early. True once no write of it can happen any more; False: that could not be confirmed in time.

        A lease that is not known (never opened, or ended well) is quiesced, and can not be opened afterwards.
        """
        key = (decode_incarnation, lease_id)
        answer: Future[bool] = Future()
        answer.set_running_or_notify_cancel()
        with self._lock:
            self._spent.add(key)
        self._inbox.post(lambda: self._abort(key, answer))
        return answer

    @property
    def is_alive(self) -> bool:
        """False: the sender thread has ended and no transfer can go on."""
        return self._thread.is_alive()

    @property
    def proofs(self) -> int:
        """Writes that have arrived so far, at peers or from here to itself: while it grows, the transport works."""
        return self._self_check.proofs

    def close(self, deadline_s: float = 10.0) -> bool:
        """Ends every transfer, quiesces, destroys the agent. False when that took too long (the thread is left behind)."""
        self._stopping = True
        self._wake.set()
        self._thread.join(deadline_s)
        return not self._thread.is_alive()

    # ---- the sender thread

    def _run(self) -> None:
        with own_stream(self._pool.device):
            while not self._stopping:
                self._step()
                self._wait()
            self._end_all()
        self._transport.close()

    def _wait(self) -> None:
        busy = self._barriers.any_pending or any(transfer.in_flight for transfer in list(self._transfers.values()))
        if not busy:
            self._pace.progressed()
        self._wake.wait(self._pace.interval_s() if busy else self._config.idle_poll_s)
        self._wake.clear()

    def _step(self) -> None:
        self._inbox.run_all()
        for key, transfer in list(self._transfers.items()):
            # A peer's end, found by one of its transfers, ends the others too.
            if key in self._transfers:
                self._advance_or_fail(transfer)
        self._barriers.poll()
        self._self_check.step()
        try:
            for sender_name, _ in self._transport.notifications():
                log.warning("dropped a notification of %s: a sender expects none", sender_name)
                self._metrics.kv_notifications_dropped.of(reason="unexpected").inc()
        except ServalError as error:
            log.warning("KV sender: %s", error)

    def _advance_or_fail(self, transfer: Transfer) -> None:
        try:
            self._advance(transfer)
        except ServalError as error:
            self._fail(transfer, error)
        except Exception as error:
            log.exception("KV transfer of %s", transfer.request_id)
            self._fail(transfer, TransferFailed(f"unexpected {type(error).__name__}: {error}"))

    def _advance(self, transfer: Transfer) -> None:
        """Polls what is in flight, posts what is ready, ends what is complete. Raises what ends the transfer."""
        moved = self._writer.poll(transfer)
        if moved:
            self._self_check.note_work()
        while len(transfer.in_flight) < self._config.writes_in_flight and (region := transfer.next_region()) is not None:
            self._writer.post(self._connections.connected(transfer.peer), transfer, region)
            moved = True
        if moved:
            self._pace.progressed()
        if transfer.is_all_posted and not transfer.in_flight:
            self._end(transfer, None, quiesced=True)
        elif time.monotonic() > transfer.deadline_s:
            raise LeaseExpired("the write lease ended before everything was written")

    def _fail(self, transfer: Transfer, error: ServalError) -> None:
        """Ends a transfer that did not get through. What was in flight is fenced by a barrier first."""
        key = (transfer.peer, transfer.lease_id)
        if self._transfers.pop(key, None) is None:
            return
        if isinstance(error, TransferAborted):  # as asked: a client that went away is nobody's fault
            log.info("KV transfer of %s: %s", transfer.request_id, error)
        else:
            log.warning("KV transfer of %s failed: %s", transfer.request_id, error)
            self._metrics.kv_transfer_failures.of(reason=type(error).__name__).inc()
        may_land = self._writer.abandon(transfer)
        if may_land:
            self._fences.add(key)
        if isinstance(error, PeerGone) and self._connections.number(transfer.peer) is not None:
            self._disconnect(transfer.peer, str(error))
        if may_land:
            self._fences.prove(key, lambda quiesced: self._end(transfer, error, quiesced))
        else:
            self._end(transfer, error, quiesced=True)

    def _end(self, transfer: Transfer, error: ServalError | None, quiesced: bool) -> None:
        key = (transfer.peer, transfer.lease_id)
        self._transfers.pop(key, None)
        result = transfer.result(error, quiesced)
        self._writer.count(result)
        transfer.done.set_result(result)
        for waiter in transfer.quiesce_waiters:
            waiter.set_result(quiesced)

    def _abort(self, key: LeaseKey, answer: "Future[bool]") -> None:
        transfer = self._transfers.get(key)
        if transfer is not None:
            transfer.quiesce_waiters.append(answer)
            self._fail(transfer, TransferAborted("aborted by the decode worker"))
        elif key in self._fences:
            self._fences.prove(key, answer.set_result)
        else:
            answer.set_result(True)

    def _add_peer(self, peer: Peer) -> None:
        if (known := self._connections.known(peer.incarnation)) is not None:
            if peer.landing_address not in known.zones:
                self._connections.learn(peer.after(known))
            return
        for other in self._connections.named(peer.name):
            self._remove_peer(other, f"{peer.name} was restarted")
        self._connections.learn(peer)

    def _remove_peer(self, incarnation: Incarnation, why: str) -> None:
        """What is unconfirmed of it stays so: it may have lost only its name, live on, and ask."""
        self._disconnect(incarnation, why)
        self._connections.forget(incarnation)

    def _disconnect(self, incarnation: Incarnation, why: str) -> None:
        """Ends what the peer's connection carries, then the connection. The next transfer to the peer makes another."""
        for transfer in [transfer for transfer in self._transfers.values() if transfer.peer == incarnation]:
            self._fail(transfer, PeerGone(f"decode worker {incarnation:016x}: {why}"))
        self._barriers.drop(incarnation)
        self._connections.disconnect(incarnation)

    def _end_all(self) -> None:
        """Ends every transfer and waits, within their deadlines, for the barriers that this needs."""
        self._inbox.run_all()
        for transfer in list(self._transfers.values()):
            self._fail(transfer, TransferFailed("the prefill worker is closing"))
        while self._barriers.any_pending:
            self._barriers.poll()
            time.sleep(self._config.active_poll_s)
        for incarnation in self._connections.all:
            self._remove_peer(incarnation, "this worker is closing")

    def __repr__(self) -> str:
        return f"Sender({self._incarnation:016x} {len(self._connections.all)} peers {len(self._transfers)} transfers)"
