"""How long workers' engines computed for requests, and what of it nobody will be told of any more.

A worker that dies takes its own counters with it, so they are added up here, report by report. Requests account for what their
ends tell, and what can no longer be told is `lost`, so that the two together are what was computed:

- A decode worker tells it with each end. When it is gone, what its last report had as untold is lost.
- A prefill worker tells decode workers, which tell it here: that may get lost on the way. Its reports say what it told each of
  them, so when one is gone, what did not come through it is lost.
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
    """By this worker to the peer, as of its last report."""
    heard: dict[int, float] = field(default_factory=dict)
    """By this router from the peer."""
    written_off: dict[int, float] = field(default_factory=dict)
    """Counted as lost though it may come yet."""
    broken: set[int] = field(default_factory=set)
    """A prefill worker's decode workers whose stream has ended since its last report."""
    late: dict[int, float] = field(default_factory=dict)
    """A decode worker's: by prefill worker, what came too late for the ends of its requests, as of its last report."""

    def missing(self, peer: int) -> float:
        """Told the peer, and neither heard of nor written off. Negative: heard since the last report."""
        return self.told.get(peer, 0.0) - self.heard.get(peer, 0.0) - self.written_off.get(peer, 0.0)

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
        for amounts in (self.told, self.heard, self.written_off):
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
            account.heard, account.late = (reported, {}) if worker.hello.role == PREFILL else ({}, reported)
        account.is_live = True
        self._count(account, load.busy_s - account.busy_s)  # a probe's time is taken off when it has ended
        self._lose(account, account.cover(UNTOLD, load.lost_busy_s - account.lost_s))
        account.lost_s, account.untold_s = max(account.lost_s, load.lost_busy_s), load.untold_busy_s
        if worker.hello.role == PREFILL:
            account.told = dict(reported)
            self._settle_with_the_gone(account)
        else:
            account.told = dict(account.heard)
            self._take_late(worker.incarnation, account, reported)

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
        missing = {peer: account.missing(peer) for peer in account.told.keys() | account.heard.keys()}
        for peer, missing_s in missing.items():
            self._write_off(account, peer, missing_s)
        untold_s = max(0.0, account.untold_s - account.written_off.get(UNTOLD, 0.0))
        untold_s += sum(
            min(0.0, one) for one in missing.values()
        )  # heard of since the report, which had it as untold, or not yet
        self._write_off(account, UNTOLD, untold_s)
        self._count(account, -untold_s)
        account.told, account.untold_s = dict(account.heard), 0.0
        if len(self._accounts) > REMEMBERED:
            del self._accounts[next(iter(self._accounts))]

    def _hear(self, account: _Account, peer: int, seconds: float) -> float:
        account.heard[peer] = account.heard.get(peer, 0.0) + seconds
        billed_s = account.cover(peer, seconds)
        if not account.is_live:  # computed after its last report
            self._count(account, billed_s)
        return billed_s

    def _take_late(self, incarnation: int, account: _Account, reported: Mapping[int, float]) -> None:
        """What prefill workers told this decode worker when the ends of its requests were out."""
        for peer, seconds in reported.items():
            of_prefill = self._accounts.get(peer)
            if of_prefill is not None:
                new_s = max(0.0, seconds - account.late.get(peer, 0.0))
                self._lose(of_prefill, self._hear(of_prefill, incarnation, new_s))
        account.late = dict(reported)

    def _settle_with_the_gone(self, account: _Account) -> None:
        """What a prefill worker told decode workers that are gone, or were, and they told nobody."""
        for peer in account.told.keys() | account.heard.keys() | account.written_off.keys():
            decode = self._accounts.get(peer)
            is_gone = peer != UNTOLD and (decode is None or not decode.is_live)
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
