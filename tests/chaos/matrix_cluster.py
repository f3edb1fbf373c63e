"""The cluster that the matrix breaks: two routers, two prefill and two decode workers, each a process that can be replaced.

Nobody restarts them but the test, as Kubernetes or Ray would, so that it is known when which process is there.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from cluster_samples import Samples
from matrix_client import Front
from matrix_nursery import Nursery
from matrix_places import Place, Switch
from matrix_process import LOOK_PERIOD_S, Post, Process

from serving.ports import any_free_port
from worker.hold import Point

MODEL = "tiny"
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
ROUTERS = ("router-0", "router-1")
JOIN_TIMEOUT_S = 120.0
SCRAPE_TIMEOUT_S = 2.0
DECODE_SEQUENCES = 4
"""Answers that a decode worker computes at once."""

SETTINGS: dict[str, dict[str, Any]] = {
    # The KV cache's books are checked at every step. Every layer leaves by itself, however small, so that there are thirds of them.
    "engine": {
        "dtype": "float32",
        "kv_memory_bytes": 32 << 20,
        "max_batch_tokens": 512,
        "max_sequences": DECODE_SEQUENCES,
        "check_integrity": True,
        "threads": 1,
    },
    "transfer": {"min_write_bytes": 0, "max_write_bytes": 1, "landing_bytes": 16 << 20},
    "decode": {"local_prefill_max_tokens": 0},
    # Who has no place at a worker waits in the router's own line.
    "router": {"policy": "round_robin", "decode_overcommit": 0},
}
"""All else, every timeout too, is as shipped."""


@dataclass(eq=False)
class MatrixCluster:
    """`start` to `stop`. `folder` takes the configuration, the logs and what holds requests."""

    nursery: Nursery
    model: Path
    folder: Path
    switch: Switch | None = None
    """Every process in a namespace of its own on it; None: all on loopback."""
    processes: dict[str, Process] = field(default_factory=dict)
    kv_blocks: int = 0
    """Of each worker's pool."""
    _posts: dict[str, Post] = field(default_factory=dict)
    _starts: int = 0
    _http: httpx.AsyncClient = field(
        default_factory=lambda: httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False, verify=False)
    )

    async def start(self) -> None:
        self.folder.mkdir(parents=True)
        self.holds.mkdir()
        settings: dict[str, Any] = {"model": str(self.model)} | {name: dict(group) for name, group in SETTINGS.items()}
        settings["link"] = {"hold_folder": str(self.holds)}
        if self.switch is not None:  # without sockets there is nothing that could be cut
            settings["transfer"] |= {"net_device": "eth0", "transports": "tcp"}
        self._config.write_text(yaml.safe_dump(settings))
        for name in (*ROUTERS, *WORKERS):
            self._posts[name] = self._post(name)
        for name in self._posts:
            self.replace(name)
        await self.until_whole()
        self.kv_blocks = (await self.workers("router-1"))["decode-0"]["load"]["kv_blocks_total"]

    async def stop(self) -> None:
        for process in self.processes.values():
            process.end()
        await self._http.aclose()

    def replace(self, name: str) -> Process:
        """Starts the post's next process; the last one must have ended."""
        last = self.processes.get(name)
        assert last is None or not last.is_running, f"{name} is still running"
        self._starts += 1
        process = Process.start(self.nursery, self._posts[name], self._config, self.folder / f"{self._starts:03d}-{name}.log")
        self.processes[name] = process
        return process

    @property
    def holds(self) -> Path:
        return self.folder / "hold"

    @property
    def _config(self) -> Path:
        return self.folder / "config.yaml"

    def _post(self, name: str) -> Post:
        role, _, index = name.partition("-")
        place = self.switch.connect(name) if self.switch is not None else Place()
        settings = [f"cluster.host={place.host}", "cluster.metrics_port=0"]
        if role != "router":
            routers = tuple(self._link(router) for router in ROUTERS)
            return Post(name, "prefill" if role == "prefill" else "decode", int(index), place, tuple(settings), routers)
        # Whoever takes its place is found where it was.
        ports = {port: any_free_port("127.0.0.1") for port in ("http_port", "grpc_port", "link_port")}
        settings += [f"router.name={name}", *(f"router.{port}={number}" for port, number in ports.items())]
        return Post(name, "router", int(index), place, tuple(settings))

    def _link(self, router: str) -> str:
        post = self._posts[router]
        (port,) = [setting.partition("=")[2] for setting in post.settings if setting.startswith("router.link_port")]
        return f"{post.place.host}:{port}"

    # ---- looking at it

    def front(self, router: str) -> Front:
        ready = self.processes[router].ready
        assert ready is not None
        return Front(router, f"http://{ready.http}", ready.grpc, self.model.name)

    async def workers(self, router: str) -> dict[str, dict[str, Any]]:
        """By name, as a router knows them; none while it does not answer."""
        ready = self.processes[router].ready
        if ready is None:
            return {}
        try:
            listed = (await self._get(f"http://{ready.http}/workers")).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return {worker["name"]: worker for worker in listed}

    async def names_by_incarnation(self) -> dict[str, str]:
        return {worker["incarnation"]: name for name, worker in (await self.workers("router-1")).items()}

    async def is_draining(self, name: str) -> bool:
        """By its own word, or it has ended."""
        process = self.processes[name]
        try:
            return (await self._get(f"http://{process.metrics}/ready")).status_code == httpx.codes.SERVICE_UNAVAILABLE
        except httpx.HTTPError:
            return not process.is_running

    async def scrape(self, name: str) -> Samples:
        return Samples.parse((await self._get(f"http://{self.processes[name].metrics}/metrics")).raise_for_status().text)

    async def until_whole(self) -> None:
        """Every process is there, and both routers know every worker's present process."""
        until = time.monotonic() + JOIN_TIMEOUT_S
        while not await self._is_whole():
            assert time.monotonic() < until, f"not whole after {JOIN_TIMEOUT_S:g} s: {await self._who_is_where()}"
            await asyncio.sleep(LOOK_PERIOD_S)

    async def _is_whole(self) -> bool:
        if not all(process.look() for process in self.processes.values()):
            return False
        wanted = {name: self.processes[name].pid for name in WORKERS}
        for router in ROUTERS:
            known = await self.workers(router)
            if {name: worker["pid"] for name, worker in known.items()} != wanted:
                return False
            if any(worker["is_draining"] for worker in known.values()):
                return False
        return True

    async def _who_is_where(self) -> str:
        known = {router: sorted(await self.workers(router)) for router in ROUTERS}
        return json.dumps(known | {"running": [name for name, process in self.processes.items() if process.is_running]})

    async def _get(self, url: str) -> httpx.Response:
        """A connection of its own each time: one that was kept may lead to a process that is gone."""
        return await self._http.get(url, headers={"connection": "close"})

    # ---- idle means balanced

    async def imbalance(self) -> list[str]:
        """What is not as it must be when no request is open; empty when all is."""
        wrong: list[str] = []
        for name in (*ROUTERS, *WORKERS):
            try:
                samples = await self.scrape(name)
            except httpx.HTTPError as error:
                wrong.append(f"{name}: {type(error).__name__}")
                continue
            gauges = {gauge: samples.sum(gauge) for gauge in ("serval_num_requests_running", "serval_num_requests_waiting")}
            wrong += [f"{name}: {gauge} {count:g}" for gauge, count in gauges.items() if count]
            if name in WORKERS:
                wrong += [f"{name}: {leak}" for leak in leaks(samples, self.kv_blocks)]
        return wrong

    async def until_balanced(self, timeout_s: float) -> list[str]:
        """What is still not so at the deadline."""
        until = time.monotonic() + timeout_s
        while True:
            wrong = await self.imbalance()
            if not wrong or time.monotonic() > until:
                return wrong
            await asyncio.sleep(LOOK_PERIOD_S)

    async def outcomes(self, router: str) -> dict[str, int]:
        """Requests that it has ended, by outcome."""
        found = (await self.scrape(router)).by_label("serval_requests_total", "outcome")
        return {outcome: int(count) for outcome, count in found.items() if count}

    # ---- holding requests

    def hold(self, point: Point) -> None:
        (self.holds / point).touch()

    def let_go(self) -> None:
        """Of everything; what was told before is forgotten."""
        for path in self.holds.iterdir():
            path.unlink(missing_ok=True)

    def held(self, point: Point) -> list[dict[str, Any]]:
        """What the workers tell of the requests that stay there now."""
        found = []
        for path in sorted(self.holds.glob(f"{point}@*.json")):
            try:
                found.append(json.loads(path.read_text()))
            except FileNotFoundError:  # it went meanwhile
                continue
        return found


def leaks(samples: Samples, kv_blocks: int) -> list[str]:
    """An idle worker's blocks that are neither free nor cached, in its pool of so many and in its landing zone."""
    wrong = []
    blocks = samples.by_label("serval_kv_blocks", "state")
    if lost := kv_blocks - blocks.get("free", 0) - blocks.get("cached", 0):
        wrong.append(f"{lost:g} KV blocks")
    landing = samples.by_label("serval_kv_landing_blocks", "state")
    wrong += [f"{count:g} landing blocks {state}" for state, count in landing.items() if count and state != "free"]
    return wrong
