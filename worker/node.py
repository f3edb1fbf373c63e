"""The frame of a worker process: who it is, its gRPC server, its streams to the routers, its load."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from engine.engine import Engine
from kvtransfer.layout import KVLayout
from protocol import cluster_pb2
from protocol.ids import Incarnation, ProcessIdentity, draw_incarnation
from protocol.peer_guard import PeerGuard
from protocol.server import GrpcServer
from telemetry.metrics import Metrics
from worker.cache_reports import CacheReports
from worker.router_link import OrderHandler, RouterLink
from worker.router_links import RouterLinks
from worker.spec import WorkerSpec

LAG_PROBE_PERIOD_S = 0.25

DescribeLoad = Callable[[cluster_pb2.LoadReport, Incarnation], None]
"""Fills in what only the role knows, for that router."""


class WorkerNode:
    """Knows nothing of prefill or decode. `peer` and `hello` are complete once `listen` has returned."""

    def __init__(
        self, role: cluster_pb2.Role.ValueType, spec: WorkerSpec, engine: Engine, metrics: Metrics, services: list[str]
    ) -> None:
        self.spec = spec
        self.incarnation: Incarnation = draw_incarnation()
        self.server = _server(role, spec, metrics, services)
        self.layout = layout_of(spec, engine)
        self.peer = cluster_pb2.Peer(
            name=spec.name, incarnation=self.incarnation, process=ProcessIdentity.of_this_process().to_proto()
        )
        self._role = role
        self._engine = engine
        self._metrics = metrics
        self._links: RouterLinks | None = None
        self._describe_load: DescribeLoad = lambda load, router: None
        self._lag_probe: asyncio.Task[None] | None = None

    async def listen(self) -> str:
        """Serves gRPC; returns host:port. Add servicers to `server` before."""
        port = await self.server.start(self.spec.host, self.spec.port)
        self.peer.address = f"{self.spec.host}:{port}"
        self._lag_probe = asyncio.create_task(self._probe_lag())
        return self.peer.address

    def dial_routers(self, handler: OrderHandler, describe_load: DescribeLoad) -> None:
        """From now on routers know this worker, and lose it only with its streams. `describe_load` fills in what the role knows."""
        self._describe_load = describe_load
        reports = CacheReports(self._engine.kv_cache, self.spec.link.cache_report_period_s)

        def make_link(address: str) -> RouterLink:
            on_stalled = self._metrics.router_stalls.of().inc
            return RouterLink(address, self._hello(), self._load, handler, self.spec.link, reports, self.spec.tls, on_stalled)

        self._links = RouterLinks(self.spec.routers, make_link, self.spec.link)
        self._links.start()

    @property
    def has_joined(self) -> bool:
        """At least one router knows this worker."""
        return self._links is not None and self._links.has_joined

    async def drain(self) -> None:
        """Tells routers and health checks that no new work is taken. Streams stay."""
        await self.server.drain()
        if self._links is not None:
            self._links.say_draining()

    async def stop(self, grace_s: float) -> None:
        if self._lag_probe is not None:
            self._lag_probe.cancel()
        if self._links is not None:
            await self._links.stop()
        await self.server.stop(grace_s)

    def _hello(self) -> cluster_pb2.Hello:
        pool = self._engine.pool
        return cluster_pb2.Hello(
            role=self._role,
            peer=self.peer,
            model=self.spec.model,
            layout_fingerprint=self.layout.fingerprint,
            block_size=self._engine.kv_cache.block_size,
            kv_blocks=self._engine.kv_cache.num_blocks,
            max_model_len=self._engine.max_model_len,
            metrics_address=self.spec.metrics_address,
            max_sequences=self.spec.engine.max_sequences,
            kv_token_bytes=pool.num_layers * pool.entry_width * pool.dtype.itemsize,
        )

    def _load(self, router: Incarnation) -> cluster_pb2.LoadReport:
        engine = self._engine
        load = cluster_pb2.LoadReport(
            running=engine.num_running,
            waiting=engine.num_waiting,
            kv_blocks_used=engine.kv_cache.num_held,
            kv_blocks_total=engine.kv_cache.num_blocks,
            steps=engine.steps,
            prefill_tokens_per_s=engine.recent.prefill_tokens_per_s,
            step_s=engine.recent.step_s,
            busy_s=engine.busy_s,
        )
        self._describe_load(load, router)
        return load

    async def _probe_lag(self) -> None:
        """Measures how late the event loop runs: the first thing to look at when tokens stutter."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PROBE_PERIOD_S
            await asyncio.sleep(LAG_PROBE_PERIOD_S)
            self._metrics.loop_lag.of().observe(max(0.0, loop.time() - due))


def _server(role: cluster_pb2.Role.ValueType, spec: WorkerSpec, metrics: Metrics, services: list[str]) -> GrpcServer:
    """Services of workers are for decode workers: prefill's is the only one that there is."""
    if spec.tls is None:
        return GrpcServer(services)
    surface = cluster_pb2.Role.Name(role).removeprefix("ROLE_").lower()
    metrics.certificate_expiry.of(surface=surface).set_function(spec.tls.expires_at)
    guard = PeerGuard(services, ["decode"], metrics.tls_refusals.of(surface=surface).inc)
    return GrpcServer(services, tls=spec.tls, guard=guard, on_handshake=metrics.tls_handshakes.of(surface=surface).inc)


def revision_of(model_dir: Path) -> str:
    """Tells checkpoints of one name apart without reading weights: the config's content, the weight files' names and sizes."""
    digest = hashlib.sha256((model_dir / "config.json").read_bytes())
    for file in sorted(model_dir.glob("*.safetensors")):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def layout_of(spec: WorkerSpec, engine: Engine) -> KVLayout:
    """The KV layout by which peers recognise that their bytes mean the same."""
    pool = engine.pool
    return KVLayout(
        model=spec.model,
        revision=revision_of(spec.model_dir),
        dtype=str(pool.data.dtype).removeprefix("torch."),
        layers=pool.num_layers,
        block_size=pool.block_size,
        entry_width=pool.entry_width,
        draft_layers=engine.model_config.num_draft_layers,
    )
