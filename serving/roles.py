"""Which class does which job, built from the one configuration. The same for a plain process and a Ray Serve replica."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from protocol.errors import Unavailable
from protocol.tls import TlsIdentity
from router.config import RouterConfig
from serving.config import ServalConfig
from serving.pool_scaler import PoolScaler
from serving.ports import cannot_listen
from serving.status import Ready
from telemetry.endpoint import MetricsEndpoint, WhyNot
from telemetry.metrics import Metrics
from telemetry.tracing import Tracing
from worker.spec import Progress, WorkerSpec

if TYPE_CHECKING:
    from decode.worker import DecodeWorker
    from prefill.worker import PrefillWorker

ROUTER_LAST_CALL_S = 0.5
"""A router's stop drains once more by itself; the launcher has waited already."""

STANDSTILL_S = 10.0
"""Seconds without a look at a worker's health after which its event loop hangs. Looks come every second; a loop that is busy with
hundreds of streams is late by tenths."""

Role = Literal["router", "prefill", "decode"]


@dataclass(frozen=True)
class Member:
    """One process of the cluster: its role and its number within the role. `given_name`: what it is called by whoever else
    counts its processes, such as Kubernetes."""

    role: Role
    index: int = 0
    given_name: str = ""

    @property
    def name(self) -> str:
        if self.given_name:
            return self.given_name
        return "router" if self.role == "router" else f"{self.role}-{self.index}"


class Server(Protocol):
    """What every process runs. `start` returns once it serves; `drain` refuses new work and waits for the open work, at most
    `timeout_s`; `stop` ends everything within about `timeout_s`, also when `start` never finished. `check_health` raises
    Unavailable when the server runs and does not work any more. `desired_workers`: how many a router wants, prefill and decode;
    None where it has no opinion, and of workers."""

    async def start(self) -> Ready: ...

    async def drain(self, timeout_s: float) -> None: ...

    async def stop(self, timeout_s: float) -> None: ...

    async def check_health(self) -> None: ...

    @property
    def desired_workers(self) -> tuple[int, int] | None: ...


def members(config: ServalConfig) -> list[Member]:
    """Every process of the cluster, in the order in which they start."""
    prefill = [Member("prefill", index) for index in range(config.cluster.prefill)]
    decode = [Member("decode", index) for index in range(config.cluster.decode)]
    return [Member("router"), *prefill, *decode]


def metrics_port(config: ServalConfig, member: Member) -> int:
    """Where a worker serves /metrics; 0 for any free port."""
    base = config.cluster.metrics_port
    return base + 1 + _number(config, member) if base else 0


def metrics_endpoint(config: ServalConfig, member: Member, metrics: Metrics, probes: Mapping[str, WhyNot]) -> MetricsEndpoint:
    """Where a worker serves /metrics and is probed. Raises ConfigError when the port is taken."""
    host, port = config.cluster.host, metrics_port(config, member)
    try:
        return MetricsEndpoint(metrics, host, port, probes)
    except OSError as error:
        raise cannot_listen("cluster.metrics_port", host, port, error) from error


def worker_port(config: ServalConfig, member: Member) -> int:
    """Where a worker's gRPC server listens; 0 for any free port."""
    base = config.cluster.worker_port
    return base + _number(config, member) if base else 0


def _number(config: ServalConfig, member: Member) -> int:
    """A worker's number among all of the machine, prefill workers first."""
    return member.index if member.role == "prefill" else config.cluster.prefill + member.index


def build(member: Member, config: ServalConfig, routers: Sequence[str], progress: Progress) -> Server:
    """The server of `member`. `routers` are what a worker dials: link addresses, or dns:name:port (worker/router_links.py).

    Imports only what the role needs: a router process has no torch in it.
    """
    metrics = Metrics(member.role, member.name)
    tracing = Tracing.of(config.tracing, member.role, member.name)
    if member.role == "router":
        return _RouterServer(config, metrics, tracing)
    return _WorkerServer(member, config, routers, metrics, tracing, progress)


class _RouterServer:
    """The router needs no start-up deadline of its own: it loads a tokenizer."""

    def __init__(self, config: ServalConfig, metrics: Metrics, tracing: Tracing) -> None:
        from router.router import Router

        self._config = _with_link_tls(config)
        self._router = Router(self._config, metrics, tracing)
        self._tracing = tracing
        initial = config.cluster.prefill, config.cluster.decode
        scaling = config.scaling
        self._scaler = PoolScaler(scaling, initial, self._router.pool_load, metrics) if scaling is not None else None

    async def start(self) -> Ready:
        ports = await self._router.start()
        if self._scaler is not None:
            self._scaler.start()
        host = self._config.host
        http = f"{host}:{ports.http}"
        return Ready(grpc=f"{host}:{ports.grpc}", metrics=http, http=http, link=f"{host}:{ports.link}")

    async def drain(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._router.drain(), timeout_s)

    @property
    def desired_workers(self) -> tuple[int, int] | None:
        return None if self._scaler is None else self._scaler.desired

    async def stop(self, timeout_s: float) -> None:
        if self._scaler is not None:
            self._scaler.stop()
        await self._router.stop(min(timeout_s, ROUTER_LAST_CALL_S))
        await asyncio.to_thread(self._tracing.close)

    async def check_health(self) -> None:
        if self._router.members is None:
            raise Unavailable("the router has stopped")


class _WorkerServer:
    """A prefill or decode worker with its /metrics, /health and /ready."""

    def __init__(
        self,
        member: Member,
        config: ServalConfig,
        routers: Sequence[str],
        metrics: Metrics,
        tracing: Tracing,
        progress: Progress,
    ) -> None:
        probes = {"/health": self.why_not_healthy, "/ready": self.why_not_ready}
        self._endpoint = metrics_endpoint(config, member, metrics, probes)
        self._seen_healthy: float | None = None
        self._is_draining = False
        spec = WorkerSpec(
            name=member.name,
            host=config.cluster.host,
            routers=tuple(routers),
            model=config.router.model,
            model_dir=config.model,
            engine=config.engine_of(member.role),
            transfer=config.transfer,
            link=config.link,
            health=config.health,
            port=worker_port(config, member),
            metrics_address=self._endpoint.address,
            tls=TlsIdentity(tls.of_role(member.role), "cluster.tls") if (tls := config.cluster.tls) else None,
            tracing=tracing,
            progress=progress,
        )
        self._worker = _worker(member, spec, config, metrics)
        self._tracing = tracing

    async def start(self) -> Ready:
        address = await self._worker.start()
        self._seen_healthy = time.monotonic()
        return Ready(grpc=address, metrics=self._endpoint.address)

    async def drain(self, timeout_s: float) -> None:
        self._is_draining = True
        await self._worker.drain(timeout_s)

    async def stop(self, timeout_s: float) -> None:
        await self._worker.stop(timeout_s)
        self._endpoint.close()
        await asyncio.to_thread(self._tracing.close)

    @property
    def desired_workers(self) -> None:
        return None

    async def check_health(self) -> None:
        if (reason := self._worker.why_not_healthy) is not None:
            raise Unavailable(reason)
        self._seen_healthy = time.monotonic()

    def why_not_healthy(self) -> str | None:
        """None while the worker has started and its event loop and engine go on: otherwise only a new process helps. From a
        thread of the endpoint's: a loop that hangs could not answer."""
        if self._seen_healthy is None:
            return "the worker is starting"
        if self._is_draining:  # nobody looks any more, and it ends by its own deadline
            return None
        silence_s = time.monotonic() - self._seen_healthy
        return None if silence_s < STANDSTILL_S else f"not seen healthy for {silence_s:.0f} s"

    def why_not_ready(self) -> str | None:
        """None when routers may give it work."""
        if self._is_draining:
            return "the worker is draining"
        if (reason := self.why_not_healthy()) is not None:
            return reason
        return None if self._worker.has_joined else "the worker has joined no router"


def _with_link_tls(config: ServalConfig) -> RouterConfig:
    """The router's settings; towards workers it is what cluster.tls says, unless it was told otherwise."""
    if config.router.link_tls is not None or config.cluster.tls is None:
        return config.router
    return config.router.model_copy(update={"link_tls": config.cluster.tls.of_role("router")})


def _worker(member: Member, spec: WorkerSpec, config: ServalConfig, metrics: Metrics) -> "PrefillWorker | DecodeWorker":
    if member.role == "prefill":
        from prefill.worker import PrefillWorker

        return PrefillWorker(spec, config.prefill, metrics)
    from decode.worker import DecodeWorker

    return DecodeWorker(spec, config.decode, metrics)
