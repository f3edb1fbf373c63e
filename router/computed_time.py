"""How long workers' engines computed for requests, and what of it nobody will be told of any more.

A worker that dies takes its own counters with it, so they are added up here, report by report. Requests account for what their
ends tell, and what can no longer be told is `lost`, so that the two together are what was computed:

- A decode worker tells it with each end, and what it told is in its reports too, should an end be lost with a stream. When it is
  gone, what its last report had as untold is lost.
- A prefill worker tells decode workers, which tell it here in the same way. Its reports say what it told each of them, so when one
  is gone, what did not come through it is lost.
- What was counted as lost and is told after all (a prefill worker died, but the decode worker had heard) is not billed again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocol import cluster_pb2
from router.workers import POOL_NAMES, PREFILL, Worker

REMEMBERED = 1024
"""Workers that are gone, and may only have lost their stream: then they go on from what is known of them."""

UNTOLD = 0
"""In place of a peer: written off without knowing whom it would have been told."""


@dataclass
class _Account:
    """Of one incarnation. Seconds, so far; by incarnation of the peer through which this router hears of it: a prefill worker's
    decode workers, a decode worker itself."""

    pool: str
    busy_s: float
    lost_s: float
    untold_s: float = 0.0
    is_live: bool = True
    told: dict[int, float] = field(default_factory=dict)
    """A prefill worker's: to the peer, as of its last report."""
    heard: dict[int, float] = field(default_factory=dict)
    """By this router from the peer."""
    heard_then: dict[int, float] = field(default_factory=dict)
    """At the last report."""
    written_off: dict[int, float] = field(default_factory=dict)
    """Counted as lost though it may come yet."""
    broken: set[int] = field(default_factory=set)
    """A prefill worker's: peers whose stream has ended since its last report."""

    def missing(self, peer: int) -> float:
        """Told the peer, and neither heard of nor written off."""
        return max(0.0, self.told.get(peer, 0.0) - self.heard.get(peer, 0.0) - self.written_off.get(peer, 0.0))

    def news(self) -> float:
        """Heard since the last report, and not what that had as told: it had it as untold, or could not have it yet."""
        known = {peer: max(self.told.get(peer, 0.0), self.heard_then.get(peer, 0.0)) for peer in self.heard}
        return sum(max(0.0, heard_s - known[peer]) for peer, heard_s in self.heard.items())

    def cover(self, peer: int, seconds: float) -> float:
        """Something comes after all. Returns what of it was not written off."""
        seconds = max(0.0, seconds)
        for key in dict.fromkeys((peer, UNTOLD)):
            covered = min(seconds, self.written_off.get(key, 0.0))
            if covered:
                self.written_off[key] -= covered
                seconds -= covered
        return seconds

    def forget(self, peer: int) -> None:
        for amounts in (self.told, self.heard, self.heard_then, self.written_off):
            amounts.pop(peer, None)


@dataclass
class ComputedTime:
    """Changed on the event loop, may be read by any thread. `on_lost(pool, seconds)` hears of what is lost."""

    on_lost: Callable[[str, float], None]
    _pools: dict[str, float] = field(default_factory=dict)
    _accounts: dict[int, _Account] = field(default_factory=dict)

    def read(self) -> Mapping[str, float]:
        """Seconds of all workers of a pool together, since this router knows them."""
        return dict(self._pools)

    def on_report(self, worker: Worker, load: cluster_pb2.LoadReport) -> None:
        """Call with each report, in order. What was computed before the first one is no business of this router's."""
        reported = {one.peer: one.busy_s for one in load.told_busy}
        account = self._accounts.get(worker.incarnation)
        if account is None:
            account = self._accounts[worker.incarnation] = _Account(worker.pool, load.busy_s, load.lost_busy_s)
            self._begin(worker, account, reported)
        account.is_live = True
        self._count(account, load.busy_s - account.busy_s)  # a probe's time is taken off when it has ended
        self._lose(account, account.cover(UNTOLD, load.lost_busy_s - account.lost_s))
        account.lost_s, account.untold_s = max(account.lost_s, load.lost_busy_s), load.untold_busy_s
        if worker.hello.role == PREFILL:
            account.told = reported
            self._settle(account)
        else:
            self._make_good(worker.incarnation, reported)
        account.heard_then = dict(account.heard)

    def on_told(self, worker: Worker, peer: Worker, seconds: float) -> float:
        """`peer` has said that so much was taken of `worker`. Returns what of it is to be billed."""
        account = self._accounts.get(worker.incarnation)
        return seconds if account is None else self._hear(account, peer.incarnation, seconds)

    def on_gone(self, worker: Worker) -> None:
        """The worker's stream has ended: nothing more will be told of its open requests."""
        account = self._accounts.pop(worker.incarnation, None)
        if account is None:
            return
        self._accounts[worker.incarnation] = account
        account.is_live = False
        if worker.hello.role != PREFILL:
            for other in self._accounts.values():
                if other.is_live and other.pool == POOL_NAMES[PREFILL]:
                    other.broken.add(worker.incarnation)
        news_s = account.news()
        for peer in account.told:
            self._write_off(account, peer, account.missing(peer))
        untold_s = max(0.0, account.untold_s - account.written_off.get(UNTOLD, 0.0)) - news_s
        self._write_off(account, UNTOLD, untold_s)
        self._count(account, -untold_s)
        account.untold_s, account.heard_then = 0.0, dict(account.heard)
        gone = [incarnation for incarnation, one in self._accounts.items() if not one.is_live]
        if len(gone) > REMEMBERED:
            del self._accounts[gone[0]]

    def _hear(self, account: _Account, peer: int, seconds: float) -> float:
        account.heard[peer] = account.heard.get(peer, 0.0) + seconds
        billed_s = account.cover(peer, seconds)
        if not account.is_live:  # computed after its last report
            account.heard_then = dict(account.heard)
            self._count(account, billed_s)
        return billed_s

    def _begin(self, worker: Worker, account: _Account, reported: Mapping[int, float]) -> None:
        """What was told before is known, or forgotten with the account that it was in."""
        if worker.hello.role == PREFILL:
            account.heard = dict(reported)
            return
        for peer, seconds in reported.items():
            if (other := self._accounts.get(peer)) is not None:
                other.heard.setdefault(worker.incarnation, seconds)

    def _make_good(self, incarnation: int, reported: Mapping[int, float]) -> None:
        """What a decode worker has told, and was not heard here: it was lost with a stream, or its request's end was out before."""
        for peer, seconds in reported.items():
            if (account := self._accounts.get(peer)) is not None:
                self._lose(account, self._hear(account, incarnation, max(0.0, seconds - account.heard.get(incarnation, 0.0))))

    def _settle(self, account: _Account) -> None:
        """What a prefill worker told decode workers that are gone, or were, and did not come through."""
        for peer in account.told.keys() | account.heard.keys() | account.written_off.keys():
            through = self._accounts.get(peer)
            is_gone = peer != UNTOLD and (through is None or not through.is_live)
            if is_gone or peer in account.broken:
                self._write_off(account, peer, account.missing(peer))
            if is_gone and peer not in account.told:
                account.forget(peer)
        account.broken.clear()

    def _write_off(self, account: _Account, peer: int, seconds: float) -> None:
        """It may have been lost before it was known to whom it was told."""
        if seconds > 0:
            self._lose(account, seconds if peer == UNTOLD else account.cover(UNTOLD, seconds))
            account.written_off[peer] = account.written_off.get(peer, 0.0) + seconds

    def _count(self, account: _Account, seconds: float) -> None:
        """It has computed so much more than was known."""
        if seconds > 0:
            account.busy_s += seconds
            self._pools[account.pool] = self._pools.get(account.pool, 0.0) + seconds

    def _lose(self, account: _Account, seconds: float) -> None:
        if seconds > 0:
            self.on_lost(account.pool, seconds)
