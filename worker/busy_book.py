"""What of an engine's time was told, and to whom, and what could be told to nobody: by the router whose requests took it."""

from collections import OrderedDict

from protocol import cluster_pb2

PEERS = 256
"""Remembered per router. More than a cluster has; those that were restarted long ago are dropped."""
ROUTERS = 64


class _OfOneRouter:
    def __init__(self) -> None:
        self.told: OrderedDict[int, float] = OrderedDict()
        """Seconds so far by the other worker's incarnation, the last told last."""
        self.lost_s = 0.0


class BusyBook:
    """Lives on the event loop. Amounts only grow, so a report that did not arrive is made good by the next."""

    def __init__(self) -> None:
        self._routers: OrderedDict[int, _OfOneRouter] = OrderedDict()

    def told(self, router: int, peer: int, seconds: float) -> None:
        """`peer` has been told that so much was taken, or was told it by it."""
        told = self._of(router).told
        told[peer] = told.get(peer, 0.0) + seconds
        told.move_to_end(peer)
        if len(told) > PEERS:
            told.popitem(last=False)

    def lost(self, router: int, seconds: float) -> None:
        """Whoever asked was gone before it could be told."""
        self._of(router).lost_s += seconds

    def describe(self, load: cluster_pb2.LoadReport, router: int) -> None:
        """Writes that router's part into its report."""
        book = self._of(router)
        load.lost_busy_s = book.lost_s
        load.told_busy.extend(cluster_pb2.BusyTime(peer=peer, busy_s=seconds) for peer, seconds in book.told.items())

    def _of(self, router: int) -> _OfOneRouter:
        book = self._routers.setdefault(router, _OfOneRouter())
        self._routers.move_to_end(router)
        if len(self._routers) > ROUTERS:
            self._routers.popitem(last=False)
        return book
