"""How long workers' engines computed, as their reports tell it, and what of it nobody will be told of any more.

A worker that dies takes its own counters with it, so they are added up here, report by report. Requests account for what their
workers say at their end; for what a worker took for requests that were open when it died, and for those whose asker died, nobody
does. That is `lost`. One stream brings reports and ends in order, so what was told since a report is known not to be lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protocol import cluster_pb2
from router.workers import Worker

REMEMBERED = 1024
"""Workers that are gone, and may only have lost their stream: then they go on from what is known of them."""


@dataclass
class _Account:
    """Of one incarnation. Seconds."""

    report: cluster_pb2.LoadReport
    told_s: float = 0.0
    """By ends that came after the report."""


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
        account = self._accounts.get(worker.incarnation)
        if account is not None:
            load.busy_s = max(load.busy_s, account.report.busy_s)  # a probe's time is taken off when it has ended
            computed_s = load.busy_s - account.report.busy_s
            self._pools[worker.pool] = self._pools.get(worker.pool, 0.0) + computed_s
            self._lose(worker.pool, load.lost_busy_s - account.report.lost_busy_s)
        self._accounts[worker.incarnation] = _Account(load)

    def on_told(self, worker: Worker, timings: cluster_pb2.Timings) -> None:
        """A request's end has said what it took of a decode worker."""
        if (account := self._accounts.get(worker.incarnation)) is not None:
            account.told_s += timings.decode_busy_s

    def on_gone(self, worker: Worker) -> None:
        """The worker's stream has ended: nothing more will be told of its open requests."""
        account = self._accounts.pop(worker.incarnation, None)
        if account is None:
            return
        report = account.report
        self._lose(worker.pool, report.untold_busy_s - account.told_s)
        known = cluster_pb2.LoadReport(busy_s=report.busy_s, lost_busy_s=report.lost_busy_s)
        self._accounts[worker.incarnation] = _Account(known)
        if len(self._accounts) > REMEMBERED:
            del self._accounts[next(iter(self._accounts))]

    def _lose(self, pool: str, seconds: float) -> None:
        if seconds > 0:
            self.on_lost(pool, seconds)
