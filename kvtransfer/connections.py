"""The decode workers that a prefill worker knows, and the transport's connections to them."""

import itertools
import logging
import threading

from kvtransfer.peer import Peer
from kvtransfer.transport import Transport
from protocol.errors import PeerGone, TransferFailed
from protocol.ids import Incarnation

log = logging.getLogger(__name__)


class Connections:
    """`known` may be called from any thread, everything else from the sender thread only.

    A peer whose connection broke stays known and is connected again by the next transfer: one transient error must not shut out
    a healthy pair. Each connection has a number, never used twice: a barrier proves nothing about writes of another one.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._known: dict[Incarnation, Peer] = {}
        self._connected: set[Incarnation] = set()
        self._numbers: dict[Incarnation, int] = {}
        self._next_number = itertools.count(1)

    def known(self, incarnation: Incarnation) -> Peer | None:
        with self._lock:
            return self._known.get(incarnation)

    def named(self, name: str) -> list[Incarnation]:
        return [peer.incarnation for peer in self._known.values() if peer.name == name]

    @property
    def all(self) -> list[Incarnation]:
        return list(self._known)

    def learn(self, peer: Peer) -> None:
        """Connects, so that a wrong introduction is refused at once. Raises TransferFailed, and then it is as if nothing was said.
        What is connected already stays so, and learns of more memory: barriers go on proving what was written before."""
        if peer.incarnation in self._connected:
            self._transport.add_peer(peer.metadata, peer.incarnation)
            self._transport.check_range(peer.incarnation, peer.landing_address, peer.zone_bytes)
        else:
            self._connect(peer)
        with self._lock:
            self._known[peer.incarnation] = peer

    def connected(self, incarnation: Incarnation) -> Peer:
        """The peer, connected again if it must be. Raises PeerGone for one that is not known, TransferFailed when it fails."""
        peer = self.known(incarnation)
        if peer is None:
            raise PeerGone(f"decode worker {incarnation:016x} is not known any more")
        if incarnation not in self._connected:
            self._connect(peer)
        return peer

    def number(self, incarnation: Incarnation) -> int | None:
        """Of the present connection; None when there is none."""
        return self._numbers.get(incarnation) if incarnation in self._connected else None

    def disconnect(self, incarnation: Incarnation) -> None:
        if incarnation not in self._connected:
            return
        self._connected.remove(incarnation)
        try:
            self._transport.remove_peer(incarnation)
        except TransferFailed as error:
            log.warning("KV sender: %s", error)

    def forget(self, incarnation: Incarnation) -> None:
        self.disconnect(incarnation)
        with self._lock:
            self._known.pop(incarnation, None)
        self._numbers.pop(incarnation, None)

    def _connect(self, peer: Peer) -> None:
        self._transport.add_peer(peer.metadata, peer.incarnation)
        self._connected.add(peer.incarnation)
        self._numbers[peer.incarnation] = next(self._next_number)
        try:
            self._transport.check_range(peer.incarnation, peer.landing_address, peer.zone_bytes)
        except TransferFailed:
            self.disconnect(peer.incarnation)
            raise
