"""Starts real clusters with `serval up`, looks at them from outside, and stops them.

A cluster is asked only what an operator can ask: its HTTP and gRPC ports, every process's /metrics, and the kernel.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from cluster_samples import Samples

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 20.0
POLL_PERIOD_S = 0.02
LOG_LINES_SHOWN = 40


@dataclass(frozen=True)
class ClusterSpec:
    """What to start. `settings` are `--set` values and win over the rest."""

    model: Path
    prefill: int = 1
    decode: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    ray: bool = False
    """As Ray Serve deployments instead of plain processes."""

    def with_settings(self, **changes: Any) -> "ClusterSpec":
        """Settings by name, a double underscore for the dot: `transfer__mode="whole_prompt"`."""
        changed = dict(self.settings) | {name.replace("__", "."): value for name, value in changes.items()}
        return dataclasses.replace(self, settings=tuple(changed.items()))

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "serving.cli", "up", "--model", str(self.model)]
        command += ["--prefill", str(self.prefill), "--decode", str(self.decode)]
        command += ["--http-port", "0", "--grpc-port", "0", "--link-port", "0", "--metrics-port", "0"]
        for name, value in self.settings:
            command += ["--set", f"{name}={value}"]
        if self.ray:
            command.append("--ray")
        return command


@dataclass(frozen=True)
class WorkerView:
    """One worker as the router knows it."""

    role: str
    name: str
    incarnation: str
    pid: int
    address: str
    metrics_address: str
    layout: str
    """The fingerprint of its KV layout."""
    kv_blocks: int


@dataclass(eq=False)
class RunningCluster:
    """Between `start` and `stop`. `url` and `grpc` are the router's addresses; they outlive a restart of the router."""

    spec: ClusterSpec
    launcher: "subprocess.Popen[bytes]"
    log: Path
    scratch: Path
    """For its temporary files; removed with it."""
    url: str = ""
    grpc: str = ""
    model: str = ""
    known_pids: set[int] = field(default_factory=set)
    """Every process that was ever seen: none may outlive `stop`."""
    _is_stopping: bool = False

    @classmethod
    def start(cls, spec: ClusterSpec, log: Path) -> "RunningCluster":
        """Returns once the launcher says that every worker has joined."""
        # Short: Ray's sockets lie in it, and the path of a socket is short.
        scratch = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
        with log.open("wb") as stream:
            launcher = subprocess.Popen(
                spec.command(), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
        cluster = cls(spec, launcher, log, scratch)
        try:
            cluster._read_announcement(time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            cluster.kill()
            raise
        return cluster

    def ask_to_stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """As Ctrl-C does, once."""
        if not self._is_stopping and self.is_running:
            self.note_pids()
            self._is_stopping = True
            self.launcher.send_signal(number)

    def stop(self) -> None:
        """Stops the cluster, and asserts that it ends well and leaves nothing behind."""
        self.ask_to_stop()
        self.assert_ended(STOP_TIMEOUT_S)

    def assert_ended(self, timeout_s: float) -> None:
        """The launcher ends with status 0 within `timeout_s`, and no process of the cluster is left."""
        try:
            status = self.launcher.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the cluster did not stop within {timeout_s:g} s\n{self.log_end()}") from None
        assert status == 0, f"the launcher ended with status {status}\n{self.log_end()}"
        shutil.rmtree(self.scratch, ignore_errors=True)
        left = {pid for pid in self.known_pids if psutil.pid_exists(pid)}
        assert not left, f"processes {left} were left behind"

    def kill(self) -> None:
        """For a cluster that is of no use any more: its processes die with the launcher."""
        self.launcher.kill()
        self.launcher.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def is_running(self) -> bool:
        return self.launcher.poll() is None

    def log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])

    # ---- processes

    def note_pids(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.known_pids |= {child.pid for child in psutil.Process(self.launcher.pid).children(recursive=True)}

    def router_pid(self) -> int:
        """Of the process below the launcher that listens on the router's HTTP port."""
        self.note_pids()
        port = int(self.url.rpartition(":")[2])
        for child in psutil.Process(self.launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = child.net_connections("tcp")
                if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
                    return child.pid
        raise AssertionError("the launcher has no router process now")

    async def workers(self, role: str | None = None) -> list[WorkerView]:
        """Those that have joined the router, by name."""
        async with client() as http:
            listed = (await http.get(f"{self.url}/workers")).raise_for_status().json()
        views = [
            WorkerView(
                role=one["role"],
                name=one["name"],
                incarnation=one["incarnation"],
                pid=one["pid"],
                address=one["address"],
                metrics_address=one["metrics_address"],
                layout=one["layout_fingerprint"],
                kv_blocks=one["load"]["kv_blocks_total"],
            )
            for one in listed
        ]
        return sorted((view for view in views if role in (None, view.role)), key=lambda view: view.name)

    async def kill_worker(self, name: str) -> WorkerView:
        """`kill -9`."""
        (worker,) = [worker for worker in await self.workers() if worker.name == name]
        self.note_pids()
        os.kill(worker.pid, signal.SIGKILL)
        return worker

    async def all_joined(self, *, without: str = "") -> bool:
        """Every worker of the spec is there; none of incarnation `without`."""
        try:
            workers = await self.workers()
        except httpx.HTTPError:
            return False
        complete = len(workers) == self.spec.prefill + self.spec.decode
        return complete and without not in {worker.incarnation for worker in workers}

    # ---- metrics

    async def scrape(self) -> dict[str, Samples]:
        """Every process's samples, by name."""
        async with client() as http:
            found = {"router": Samples.parse((await http.get(f"{self.url}/metrics")).raise_for_status().text)}
        for worker in await self.workers():
            found[worker.name] = await self.scrape_worker(worker)
        return found

    async def scrape_worker(self, worker: WorkerView) -> Samples:
        async with client() as http:
            return Samples.parse((await http.get(f"http://{worker.metrics_address}/metrics")).raise_for_status().text)

    async def total(self, name: str, role: str, **labels: str) -> float:
        """A sample's sum over the processes of one role."""
        found = await self.scrape()
        return sum(samples.sum(name, role=role, **labels) for samples in found.values())

    async def outcomes(self) -> dict[str, int]:
        """Requests ended, by outcome."""
        found = (await self.scrape())["router"].by_label("serval_requests_total", "outcome")
        return {outcome: int(count) for outcome, count in found.items() if count}

    # ---- idle means balanced

    async def imbalance(self) -> list[str]:
        """What is not as it must be when no request is open; empty when all is."""
        found = await self.scrape()
        wrong = []
        for name, samples in found.items():
            gauges = {gauge: samples.sum(gauge) for gauge in ("serval_num_requests_running", "serval_num_requests_waiting")}
            wrong += [f"{name}: {gauge} {count:g}" for gauge, count in gauges.items() if count]
        for worker in await self.workers():
            blocks = found[worker.name].by_label("serval_kv_blocks", "state")
            if blocks.get("held", 0) or blocks.get("free", 0) + blocks.get("cached", 0) != worker.kv_blocks:
                wrong.append(f"{worker.name}: KV blocks {blocks} of {worker.kv_blocks}")
            landing = found[worker.name].by_label("serval_kv_landing_blocks", "state")
            if taken := {state: count for state, count in landing.items() if count and state != "free"}:
                wrong.append(f"{worker.name}: landing blocks {taken}")
        return wrong

    async def assert_idle(self, timeout_s: float = IDLE_TIMEOUT_S) -> None:
        """Every request has ended and everything was given back, within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while wrong := await self.imbalance():
            assert time.monotonic() < deadline, f"not balanced after {timeout_s:g} s: {wrong}\n{self.log_end()}"
            await asyncio.sleep(POLL_PERIOD_S)

    # ---- starting

    def _read_announcement(self, deadline: float) -> None:
        while True:
            text = self.log.read_text(errors="replace")
            model = re.search(r"^Serval serves (.+): \d+ prefill", text, re.MULTILINE)
            http = re.search(r"^  HTTP +(https?://\S+)/v1$", text, re.MULTILINE)
            grpc = re.search(r"^  gRPC +(\S+?)( \(TLS\))?$", text, re.MULTILINE)
            if model and http and grpc:
                self.model, self.url, self.grpc = model[1], http[1], grpc[1]
                self.note_pids()
                return
            assert self.launcher.poll() is None, f"the cluster did not start\n{self.log_end()}"
            assert time.monotonic() < deadline, f"the cluster was not ready in time\n{self.log_end()}"
            time.sleep(POLL_PERIOD_S)


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    """Waits for a state of another process. `condition` returns an awaitable or a value."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if await result if hasattr(result, "__await__") else result:
            return
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(POLL_PERIOD_S)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Without TLS: reading the certificates would cost more than a scrape."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(60.0, connect=5.0), trust_env=False, verify=False) as http:
        yield http
