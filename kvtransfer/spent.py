"""Leases that cannot be opened any more."""

from collections import OrderedDict

from kvtransfer.unconfirmed import LeaseKey

REMEMBERED_LEASES = 65536
"""So many that were opened or aborted are remembered: a call may come twice, and an abort may overtake its call."""


class SpentLeases:
    """From the moment a lease is added it cannot be opened: its slot may be another's by then. Not thread-safe."""

    def __init__(self) -> None:
        self._keys: OrderedDict[LeaseKey, None] = OrderedDict()

    def __contains__(self, key: LeaseKey) -> bool:
        return key in self._keys

    def add(self, key: LeaseKey) -> None:
        self._keys[key] = None
        if len(self._keys) > REMEMBERED_LEASES:
            self._keys.popitem(last=False)
