"""Memory and descriptors of a cluster's processes over time, and whether they grow."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import psutil
from cluster_harness import RunningCluster

MIB = 1024 * 1024
PERIOD_S = 1.0


@dataclass(frozen=True)
class Look:
    """One process at one moment."""

    at_s: float
    rss_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Trend:
    """How a process's use developed: the second quarter of its looks (it has warmed up by then) beside the last. Of memory the
    median; of descriptors and threads the least, for those of open connections come and go with the clients."""

    name: str
    seconds: float
    rss_mib: tuple[float, float]
    descriptors: tuple[float, float]
    threads: tuple[float, float]

    def grown(self, rss_mib: float, descriptors: float) -> list[str]:
        """What grew by more than is allowed."""
        wrong = []
        for what, (before, after), allowed in (
            ("RSS, MiB", self.rss_mib, rss_mib),
            ("descriptors", self.descriptors, descriptors),
            ("threads", self.threads, descriptors),
        ):
            if after - before > allowed:
                wrong.append(f"{self.name}: {what} {before:.0f} -> {after:.0f} in {self.seconds:.0f} s")
        return wrong


class Watch:
    """`async with Watch(cluster) as watch`: looks once a second at the launcher, the router and every worker; then `trends`.

    A process that was replaced begins a new series; of each name the longest counts.
    """

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster
        self._series: dict[tuple[str, int], list[Look]] = defaultdict(list)
        self._started_s = time.monotonic()

    async def __aenter__(self) -> "Watch":
        self._named = {"launcher": self._cluster.launcher.pid, "router": self._cluster.router_pid()}
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    def trends(self) -> list[Trend]:
        """Of each process's longest life, where that is long enough to tell (40 looks)."""
        longest: dict[str, list[Look]] = {}
        for (name, _), looks in self._series.items():
            if len(looks) > len(longest.get(name, [])):
                longest[name] = looks
        return [_trend(name, looks) for name, looks in sorted(longest.items()) if len(looks) >= 40]

    async def _run(self) -> None:
        while True:
            for name, pid in await self._processes():
                try:
                    process = psutil.Process(pid)
                    look = Look(
                        time.monotonic() - self._started_s,
                        process.memory_info().rss / MIB,
                        process.num_fds(),
                        process.num_threads(),
                    )
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                self._series[name, pid].append(look)
            await asyncio.sleep(PERIOD_S)

    async def _processes(self) -> list[tuple[str, int]]:
        try:
            workers = [(worker.name, worker.pid) for worker in await self._cluster.workers()]
        except Exception:  # a router under load may answer late; the next look comes
            workers = []
        return [*self._named.items(), *workers]


def _trend(name: str, looks: list[Look]) -> Trend:
    quarter = len(looks) // 4
    before, after = looks[quarter : 2 * quarter], looks[-quarter:]

    def both(value: str, pick: Callable[[list[float]], float]) -> tuple[float, float]:
        first, last = (pick([float(getattr(look, value)) for look in part]) for part in (before, after))
        return first, last

    seconds = looks[-1].at_s - looks[0].at_s
    return Trend(name, seconds, both("rss_mib", median), both("descriptors", min), both("threads", min))
