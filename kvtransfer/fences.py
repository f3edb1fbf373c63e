"""Which leases' writes may still land, and the proof that they no longer can."""

from collections.abc import Callable

from kvtransfer.connections import Connections
from kvtransfer.quiesce import Barriers
from kvtransfer.unconfirmed import LeaseKey, Unconfirmed


class Fences:
    """Used by the sender thread; `in` by any, with the sender's lock held."""

    def __init__(self, connections: Connections, barriers: Barriers) -> None:
        self._connections = connections
        self._barriers = barriers
        self._unconfirmed = Unconfirmed()

    def __contains__(self, key: LeaseKey) -> bool:
        """Something written under it may still land."""
        return key in self._unconfirmed

    def add(self, key: LeaseKey) -> None:
        """Writes of it were given up, on the present connection to its peer."""
        self._unconfirmed.add(key, self._connections.number(key[0]))

    def prove(self, key: LeaseKey, on_end: Callable[[bool], None]) -> None:
        """Tells whether everything written under `key` has landed: a barrier on the very connection it took.

        `on_end` is called once, now or from `Barriers`: with True, and the lease is over; or with False, and it can be asked again.
        """
        peer = self._connections.known(key[0])
        number = self._connections.number(key[0])

        def end(quiesced: bool) -> None:
            if quiesced:
                self._unconfirmed.confirm(key)
            on_end(quiesced)

        if peer is None or number is None or number != self._unconfirmed.connection_of(key):
            end(False)
        else:
            self._barriers.post(peer, end)
