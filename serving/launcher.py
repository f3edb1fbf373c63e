"""`serval up` on one machine: starts the cluster's processes, watches and restarts them, and stops them in order."""

import asyncio
import collections
import contextlib
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import ServalError
from serving.announce import announcement
from serving.child import Child, StartFailed
from serving.config import ServalConfig
from serving.display import Display
from serving.front import front_url, trust_own
from serving.membership import wait_until_joined
from serving.ports import ROUTER_PORTS, require_free
from serving.roles import Member, members, metrics_port
from serving.status import Ready
from serving.watchdog import until_silent

BACKOFF_FIRST_S = 0.5
"""Also after an orderly end, which is no death: somebody has asked that process alone to stop, so that another takes its place."""
BACKOFF_MOST_S = 10.0
DEATHS_WINDOW_S = 60.0

EXIT_INTERRUPTED = 130


class ClusterFailed(ServalError):
    """The cluster cannot go on; the message is one line."""


@dataclass
class Slot:
    """One place in the cluster, and the process that fills it now."""

    member: Member
    deaths_most: int
    """Within DEATHS_WINDOW_S: one that dies so often will go on dying."""
    child: Child | None = None
    ready: Ready | None = None
    was_ready: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: collections.deque[float] = field(default_factory=collections.deque)

    def next_pause_s(self, now: float) -> float:
        """Records a death. Seconds to wait before the next start; raises ClusterFailed when that makes no sense any more."""
        self.deaths.append(now)
        while now - self.deaths[0] >= DEATHS_WINDOW_S:
            self.deaths.popleft()
        if len(self.deaths) >= self.deaths_most:
            assert self.child is not None
            raise ClusterFailed(
                f"{self.member.name} died {len(self.deaths)} times within {DEATHS_WINDOW_S:.0f} s "
                f"(cluster.deaths_per_minute); the last time it {self.child.describe_exit()}"
            )
        return float(min(BACKOFF_FIRST_S * 2 ** (len(self.deaths) - 1), BACKOFF_MOST_S))


class Launcher:
    """Runs one cluster. `run` returns the exit status once every process has ended; it may be called once.

    The first SIGINT or SIGTERM drains and stops the cluster, the second kills it.
    """

    def __init__(self, config: ServalConfig, display: Display) -> None:
        self._config = config
        self._display = display
        self._slots = [Slot(member, config.cluster.deaths_per_minute) for member in members(config)]
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        self._require_free_ports()
        stop, hurry = asyncio.Event(), asyncio.Event()
        _on_signals(stop, hurry)
        killer = asyncio.create_task(self._kill_on(hurry), name="killer")
        keepers = self._start_keepers()
        stopped = asyncio.create_task(stop.wait(), name="stop-signal")
        try:
            await _first_of(stopped, self._become_ready(), keepers)
            await _first_of(stopped, None, keepers)
            self._display.line("draining; Ctrl-C again kills")
            await self._stop([["router"], ["decode", "prefill"]])
            return EXIT_INTERRUPTED if hurry.is_set() else 0
        except ServalError:
            await self._stop([["router", "decode", "prefill"]])
            raise
        finally:
            killer.cancel()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.wait(keepers)
            await self._kill_all()

    def _require_free_ports(self) -> None:
        router = self._config.router
        for port in ROUTER_PORTS:
            require_free(router.host, getattr(router, port), f"router.{port}")
        for slot in self._slots[1:]:
            require_free(self._config.cluster.host, metrics_port(self._config, slot.member), "cluster.metrics_port")

    # ---- keeping processes alive

    def _start_keepers(self) -> list["asyncio.Task[None]"]:
        self._router_address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        router = self._config.router
        if router.link_port:  # workers can load their weights while the router starts
            self._router_address.set_result(f"{router.host}:{router.link_port}")
        return [asyncio.create_task(self._keep(slot), name=f"keep-{slot.member.name}") for slot in self._slots]

    async def _keep(self, slot: Slot) -> None:
        """Runs the slot's process for ever. Raises StartFailed when it never came up, ClusterFailed when it keeps dying."""
        name = slot.member.name
        routers = [] if slot.member.role == "router" else [await asyncio.shield(self._router_address)]
        while not self._stopping.is_set():
            slot.child = Child(slot.member, self._display.reporter(name), self._display.line)
            await slot.child.start(self._config, routers)
            if self._stopping.is_set():  # decided while the process was being made
                slot.child.terminate()
            with contextlib.suppress(StartFailed):
                self._on_ready(slot, ready := await asyncio.shield(slot.child.ready))
                await self._watch(slot.child, ready)
            await asyncio.shield(slot.child.exited)
            self._display.finish(name)
            if self._stopping.is_set():
                return
            if slot.ready is None:  # it has never worked, so it will not work by itself
                await slot.child.ready
            pause_s = slot.next_pause_s(time.monotonic()) if slot.child.exited.result() else BACKOFF_FIRST_S
            self._display.line(f"{name} {slot.child.describe_exit()}; starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    async def _watch(self, child: Child, ready: Ready) -> None:
        """Until the process has ended. One that stands still is ended: SIGTERM would find nobody."""
        is_router = child.member.role == "router"
        url = front_url(self._config, ready.metrics) if is_router else f"http://{ready.metrics}"
        trust = trust_own(self._config) if is_router else False
        silent = asyncio.create_task(until_silent(f"{url}/health", self._config.cluster.silence_timeout_s, trust))
        try:
            ends: list[asyncio.Future[Any]] = [silent, child.exited]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if silent.done() and not self._stopping.is_set():
                self._display.line(f"{child.member.name} is killed: {silent.result()}")
                child.kill()
        finally:
            silent.cancel()

    def _on_ready(self, slot: Slot, ready: Ready) -> None:
        self._display.finish(slot.member.name)
        if slot.ready is not None:
            self._display.line(f"{slot.member.name} is back")
        slot.ready = ready
        slot.was_ready.set()
        if slot.member.role == "router":
            # Should it have to start again, its clients and workers must find it where it was.
            assert ready.http is not None
            assert ready.link is not None
            ports = {"http_port": _port(ready.http), "grpc_port": _port(ready.grpc), "link_port": _port(ready.link)}
            self._config = self._config.model_copy(update={"router": self._config.router.model_copy(update=ports)})
            if not self._router_address.done():
                self._router_address.set_result(ready.link)

    async def _become_ready(self) -> None:
        """Until every worker has joined the router; then says where everything is."""
        started = time.monotonic()
        timeout_s = self._config.cluster.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                for slot in self._slots:
                    await slot.was_ready.wait()
                ready = {slot.member.name: slot.ready for slot in self._slots if slot.ready}
                url = front_url(self._config, str(ready["router"].http))
                await wait_until_joined(url, ready.keys() - {"router"}, trust_own(self._config))
        except TimeoutError as error:
            late = [slot.member.name for slot in self._slots if slot.ready is None]
            what = f"{', '.join(late)} did not start" if late else "not every worker joined the router"
            raise ClusterFailed(f"{what} within {timeout_s:g} s (cluster.start_timeout_s)") from error
        self._display.stop_bars()
        print(announcement(self._config, ready, time.monotonic() - started), flush=True)

    # ---- stopping

    async def _stop(self, stages: Iterable[list[str]]) -> None:
        """Ends the processes stage by stage; what does not end in time is killed."""
        self._stopping.set()
        cluster = self._config.cluster
        timeout_s = cluster.drain_timeout_s + cluster.stop_timeout_s + 1.0
        for roles in stages:
            children = [slot.child for slot in self._slots if slot.child and slot.member.role in roles]
            for child in children:
                child.terminate()
            await _wait_all(children, timeout_s)
            for child in children:
                if not child.exited.done():
                    self._display.line(f"{child.member.name} did not stop in time and is killed")
                    child.kill()
            await _wait_all(children, None)

    async def _kill_on(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        self._stopping.set()
        await self._kill_all()

    async def _kill_all(self) -> None:
        children = [slot.child for slot in self._slots if slot.child]
        for child in children:
            child.kill()
        await _wait_all(children, None)


async def _first_of(
    stopped: "asyncio.Task[bool]",
    work: "collections.abc.Coroutine[None, None, None] | None",
    keepers: list["asyncio.Task[None]"],
) -> None:
    """Until `stopped`, or `work` is done, or a keeper gives up; raises what `work` or the keeper raised."""
    tasks: set[asyncio.Task[None] | asyncio.Task[bool]] = {stopped, *keepers}
    if work is not None:
        tasks.add(working := asyncio.create_task(work, name="become-ready"))
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if work is not None and not working.done():
        working.cancel()
    for task in done:
        task.result()


def _on_signals(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())


async def _wait_all(children: list[Child], timeout_s: float | None) -> None:
    if waiting := [child.exited for child in children if child.pid is not None]:
        await asyncio.wait(waiting, timeout=timeout_s)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
