"""Landing slots whose end a peer could not confirm come back: by a later answer, or with the peer's end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from decode.config import DecodeConfig
from decode.quarantine import Quarantine
from kvtransfer.landing import SlotState
from protocol import cluster_pb2
from protocol.ids import LeaseId

CONFIG = DecodeConfig(quarantine_check_s=0.01, quarantine_ask_most_s=0.02)


@dataclass
class Slot:
    state: SlotState = SlotState.LEASED


@dataclass(eq=False)
class Lease:
    lease_id: LeaseId
    slot: Slot = field(default_factory=Slot)


@dataclass(eq=False)
class Peer:
    """Answers what it is told to, as a prefill worker that stalls does."""

    answers: list[bool]
    incarnation: int = 7
    asked: int = 0

    async def abort(self, lease_id: LeaseId, timeout_s: float) -> cluster_pb2.AbortResponse:
        self.asked += 1
        return cluster_pb2.AbortResponse(quiesced=self.answers.pop(0) if self.answers else False)


class Receiver:
    """Takes slots along the two edges that matter here."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []

    def release(self, lease: Lease, quiesced: bool) -> None:
        lease.slot.state = SlotState.FREE if quiesced else SlotState.QUARANTINED

    def peer_gone(self, incarnation: int) -> None:
        for lease in self.leases:
            lease.slot.state = SlotState.PUMPING


@dataclass
class Peers:
    dead: list[Peer] = field(default_factory=list)

    def gone(self) -> list[Peer]:
        return list(self.dead)

    async def forget(self, peer: Peer) -> None:
        self.dead.remove(peer)


class Case:
    def __init__(self) -> None:
        self.receiver, self.peers, self.freed = Receiver(), Peers(), 0
        self.quarantine = Quarantine(self.receiver, self.peers, CONFIG, self._on_freed)  # type: ignore[arg-type]
        self.janitor = asyncio.create_task(self.quarantine.run())

    def _on_freed(self) -> None:
        self.freed += 1

    def set_apart(self, peer: Peer) -> Lease:
        lease = Lease(LeaseId(1))
        self.receiver.leases.append(lease)
        self.quarantine.add(lease, peer)  # type: ignore[arg-type]
        return lease

    async def emptied(self) -> None:
        async with asyncio.timeout(5):
            while len(self.quarantine):  # noqa: ASYNC110 - the janitor's own clock is what is tested
                await asyncio.sleep(0.005)


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    case = Case()
    yield case
    case.janitor.cancel()


async def test_asks_until_the_peer_confirms(case: Case) -> None:
    peer = Peer([False, False, True])
    lease = case.set_apart(peer)
    assert lease.slot.state is SlotState.QUARANTINED
    await case.emptied()
    assert peer.asked == 3
    assert lease.slot.state is SlotState.FREE
    assert case.freed, "the line of waiting requests was told"


async def test_a_dead_peer_is_not_asked_for_ever(case: Case) -> None:
    peer = Peer([])
    lease = case.set_apart(peer)
    case.peers.dead.append(peer)
    await case.emptied()
    assert lease.slot.state is SlotState.PUMPING


async def test_a_silent_peer_holds_up_nobody(case: Case) -> None:
    class Silent(Peer):
        async def abort(self, lease_id: LeaseId, timeout_s: float) -> cluster_pb2.AbortResponse:
            await asyncio.Event().wait()
            raise AssertionError("nothing sets it")

    silent, lease = case.set_apart(Silent([])), case.set_apart(Peer([True]))
    async with asyncio.timeout(5):
        while lease.slot.state is not SlotState.FREE:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert silent.slot.state is SlotState.QUARANTINED, "nobody knows that its writes are over"
