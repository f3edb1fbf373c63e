"""Leases whose writes may still land, as a sender remembers them: it must never say of one that it is over."""

from collections import OrderedDict

from protocol.ids import Incarnation, LeaseId

MOST = 4096
"""Remembered one by one. A living decode worker asks about its own until they are confirmed, or retires their slots; the rest are
of workers that are gone."""

LeaseKey = tuple[Incarnation, LeaseId]


class Unconfirmed:
    """Bounded, and never wrong about what it has forgotten: of a decode worker's leases up to the highest forgotten one it says
    that they are unconfirmed, whatever they were. Not thread-safe."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._connections: OrderedDict[LeaseKey, int | None] = OrderedDict()
        self._unknown_up_to: dict[Incarnation, LeaseId] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def __contains__(self, key: LeaseKey) -> bool:
        return key in self._connections or key[1] <= self._unknown_up_to.get(key[0], 0)

    def add(self, key: LeaseKey, connection: int | None) -> None:
        """`connection`: the number of the one that its writes took; None: it is gone."""
        self._connections[key] = connection
        if len(self._connections) > self._most:
            (incarnation, lease_id), _ = self._connections.popitem(last=False)
            self._unknown_up_to[incarnation] = max(lease_id, self._unknown_up_to.get(incarnation, LeaseId(0)))

    def connection_of(self, key: LeaseKey) -> int | None:
        """None: no barrier can tell any more."""
        return self._connections.get(key)

    def confirm(self, key: LeaseKey) -> None:
        """Everything written under it has landed."""
        self._connections.pop(key, None)
