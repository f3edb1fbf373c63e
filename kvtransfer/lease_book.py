"""Who holds which landing slot, from reservation to proof: the one owner, deadline and way back of each."""

import threading
import time
from collections.abc import Sequence

import torch

from kvtransfer.blocks import BlockList
from kvtransfer.config import TransferConfig
from kvtransfer.landing import LandingZone, SlotEvent, SlotState
from kvtransfer.layout import KVLayout
from kvtransfer.lease import Lease
from kvtransfer.zones import Zones
from protocol.errors import InvalidRequest, Overloaded
from protocol.ids import BlockId, Incarnation, LeaseId, RequestId
from telemetry.metrics import Metrics

PUMP_ROUND_S = 0.05
"""Most that one round counts as pumped: while the receiver's thread or process stood still, nothing was let in."""


class LeaseBook:
    """Any thread. Slots change state here only (`LandingZone.apply`); what that means for a lease's result is the receiver's."""

    def __init__(self, config: TransferConfig, layout: KVLayout, pool: torch.Tensor, metrics: Metrics) -> None:
        self._config = config
        self._layers = layout.layers
        self._pool_blocks = pool.shape[1]
        self._metrics = metrics
        self._lock = threading.Lock()
        self._zones = Zones(layout, config.landing_bytes, pool.device)
        self._leases: dict[LeaseId, Lease] = {}
        self._pumping: dict[Lease, float] = {}
        """Seconds still to pump."""
        self._next_lease = 1

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, lease_id: LeaseId) -> Lease | None:
        return self._leases.get(lease_id)

    @property
    def all(self) -> list[Lease]:
        return list(self._leases.values())

    @property
    def zone(self) -> LandingZone:
        """The one that slots are reserved in."""
        return self._zones.current

    @property
    def max_blocks(self) -> int:
        """The most pool blocks that one lease can cover."""
        return self.zone.usable_blocks // self._layers

    def reserve(self, request_id: RequestId, attempt: int, peer: Incarnation, pool_blocks: Sequence[BlockId]) -> Lease:
        """Raises Overloaded when no slot is free now, InvalidRequest when none ever could be."""
        if not 1 <= len(pool_blocks) <= self.max_blocks:
            raise InvalidRequest(f"{len(pool_blocks)} KV blocks; kvtransfer.landing_bytes allows 1 to {self.max_blocks}")
        blocks = BlockList(pool_blocks, self._pool_blocks)
        with self._lock:
            slot = self._zones.reserve(len(pool_blocks) * self._layers)
            if slot is None:
                raise Overloaded("no landing slot is free")
            lease_id = LeaseId(self._next_lease)
            self._next_lease += 1
            lease = Lease(lease_id, request_id, attempt, peer, slot, self._layers, blocks, self._config.lease_s)
            self._leases[lease_id] = lease
            self._publish_states()
        return lease

    def cancel(self, lease: Lease) -> None:
        """The slot waits for `release`."""
        with self._lock:
            if lease.slot.state is SlotState.LEASED:
                self._apply(lease, SlotEvent.CANCEL)

    def release(self, lease: Lease, quiesced: bool) -> None:
        """The slot is free, or quarantined without proof. A lease that is gone already is left alone."""
        with self._lock:
            if lease.lease_id not in self._leases or lease.slot.state is SlotState.PUMPING:
                return
            if quiesced:
                self._apply(lease, SlotEvent.QUIESCED)
            elif lease.slot.state is not SlotState.QUARANTINED:
                self._apply(lease, SlotEvent.UNCONFIRMED, reason="unconfirmed")

    def of_peer(self, peer: Incarnation) -> list[Lease]:
        """Those that its end has not freed yet."""
        with self._lock:
            return [one for one in self._leases.values() if one.peer == peer and one.slot.state is not SlotState.PUMPING]

    def pump(self, leases: Sequence[Lease]) -> None:
        """Their peer's process is gone: the slots are free after `pump_s` of `count_pumped`."""
        with self._lock:
            for lease in leases:
                if lease.lease_id in self._leases and lease not in self._pumping:
                    self._apply(lease, SlotEvent.PEER_GONE)
                    self._pumping[lease] = self._config.pump_s

    def count_pumped(self, seconds: float) -> None:
        """For so long the receiver's thread has let bytes in."""
        with self._lock:
            for lease in list(self._pumping):
                self._pumping[lease] -= min(seconds, PUMP_ROUND_S)
                if self._pumping[lease] < 0:
                    del self._pumping[lease]
                    self._apply(lease, SlotEvent.PUMPED)

    def expire(self, now_s: float) -> list[Lease]:
        """Quarantines the slots of leases that nobody ended in time; these leases."""
        ending = (SlotState.LEASED, SlotState.QUIESCING)
        with self._lock:
            expired = [lease for lease in self._leases.values() if now_s > lease.deadline_s and lease.slot.state in ending]
            for lease in expired:
                self._apply(lease, SlotEvent.EXPIRE, reason="expired")
        return expired

    def needs_zone(self, latest_s: float) -> bool:
        """Whether a slot of this zone waits for proof since `latest_s` or longer, and the device lets memory be left alone."""
        with self._lock:
            waiting = [one.quarantined_s for one in self._leases.values() if one.slot.zone is self.zone and one.quarantined_s]
        return self._zones.can_renew and any(since_s < latest_s for since_s in waiting)

    def next_zone(self) -> LandingZone:
        """Memory for another zone, in use after `renew`. Raises TransferFailed when there is none."""
        return self._zones.make()

    def renew(self, zone: LandingZone) -> None:
        with self._lock:
            self._zones.renew(zone)

    def retire_settled(self) -> list[LandingZone]:
        """Earlier zones in which nothing is expected any more: their memory is left alone for ever."""
        with self._lock:
            settled = self._zones.settled()
            for lease in [lease for lease in self._leases.values() if lease.slot.zone in settled]:
                self._apply(lease, SlotEvent.RETIRE)
            for zone in settled:
                self._zones.retire(zone)
            if settled:
                self._publish_states()
        return settled

    def blocks_by_state(self) -> dict[SlotState, int]:
        """Landing blocks by the state of their slot."""
        with self._lock:
            return self._zones.blocks_by_state()

    def check_integrity(self) -> None:
        """Asserts that every landing block has exactly one owner."""
        with self._lock:
            self._zones.check_integrity()

    def keep_mapped(self) -> None:
        """The receiver closes, and peers may still write to what is not free."""
        with self._lock:
            self._zones.keep_mapped()

    def _apply(self, lease: Lease, event: SlotEvent, reason: str | None = None) -> None:
        """With the lock held."""
        state = self._zones.apply(lease.slot, event)
        if state in (SlotState.FREE, SlotState.RETIRED):
            del self._leases[lease.lease_id]
        lease.quarantined_s = time.monotonic() if state is SlotState.QUARANTINED else None
        if reason is not None:
            self._metrics.kv_slots_quarantined.of(reason=reason).inc()
        self._publish_states()

    def _publish_states(self) -> None:
        for state, blocks in self._zones.blocks_by_state().items():
            self._metrics.kv_landing_blocks.of(state=state).set(blocks)
