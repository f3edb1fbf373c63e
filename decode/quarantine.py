"""Leases whose end a prefill worker could not confirm: their landing slots come back when it can, or is provably gone.

Without this, every stall of a worker or of the network would cost landing memory for as long as the worker lives.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from decode.config import DecodeConfig
from decode.prefill_client import PrefillPeer, PrefillPeers
from kvtransfer.landing import SlotState
from kvtransfer.lease import Lease
from kvtransfer.receiver import Receiver

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Unconfirmed:
    lease: Lease
    peer: PrefillPeer
    pause_s: float
    ask_at: float
    asking: asyncio.Task[None] | None = None


class Quarantine:
    """Lives on the event loop. `on_freed` is called after each look: slots that the receiver pumped come back on its own clock,
    which tells nobody."""

    def __init__(self, receiver: Receiver, peers: PrefillPeers, config: DecodeConfig, on_freed: Callable[[], None]) -> None:
        self._receiver = receiver
        self._peers = peers
        self._config = config
        self._on_freed = on_freed
        self._unconfirmed: list[_Unconfirmed] = []

    def __len__(self) -> int:
        return len(self._unconfirmed)

    def add(self, lease: Lease, peer: PrefillPeer) -> None:
        """`peer` has just failed to confirm that nothing is written under `lease` any more."""
        self._receiver.release(lease, quiesced=False)
        pause_s = self._config.quarantine_check_s
        self._unconfirmed.append(_Unconfirmed(lease, peer, pause_s, time.monotonic() + pause_s))

    async def run(self) -> None:
        """The janitor; never returns."""
        while True:
            await asyncio.sleep(self._config.quarantine_check_s)
            await self._bury_the_gone()
            # Those that were pumped are free by now.
            self._unconfirmed = [one for one in self._unconfirmed if one.lease.slot.state is SlotState.QUARANTINED]
            self._ask_those_due()
            self._on_freed()

    async def _bury_the_gone(self) -> None:
        """A process that has provably ended can write no more: its slots are pumped and come back."""
        for peer in self._peers.gone():
            logger.info("%s is gone", peer)
            self._receiver.peer_gone(peer.incarnation)
            await self._peers.forget(peer)

    def _ask_those_due(self) -> None:
        """In the background: a peer that does not answer must not hold up the others."""
        now = time.monotonic()
        for one in self._unconfirmed:
            if one.asking is None and one.ask_at <= now:
                one.asking = asyncio.create_task(self._ask(one), name=f"ask-again-{one.lease.lease_id}")

    async def _ask(self, one: _Unconfirmed) -> None:
        if (await one.peer.abort(one.lease.lease_id, self._config.abort_timeout_s)).quiesced:
            self._receiver.release(one.lease, quiesced=True)
        one.pause_s = min(2 * one.pause_s, self._config.quarantine_ask_most_s)
        one.ask_at = time.monotonic() + one.pause_s
        one.asking = None
