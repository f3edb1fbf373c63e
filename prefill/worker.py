"""The prefill worker: one process's engine, sender and service, put together.

worker = PrefillWorker(spec, PrefillConfig(), metrics)
address = await worker.start()   # model loaded, serving, dialling routers
await worker.drain(timeout_s=30) # no new work; returns when idle or at the deadline
await worker.stop(timeout_s=5)
"""

import asyncio
import logging

from engine.engine import Engine
from engine.loop import EngineLoop
from engine.sequence import SequenceUpdate
from kvtransfer.sender import Sender
from prefill.config import PrefillConfig
from prefill.jobs import Jobs
from prefill.service import PrefillService
from protocol import cluster_pb2, cluster_pb2_grpc
from telemetry.metrics import Metrics
from worker.health import Health
from worker.hold import Hold
from worker.node import WorkerNode
from worker.router_link import RouterLink
from worker.spec import WorkerSpec

logger = logging.getLogger(__name__)

SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name


class PrefillWorker:
    """All methods belong to one event loop."""

    def __init__(self, spec: WorkerSpec, config: PrefillConfig, metrics: Metrics) -> None:
        self._spec = spec
        self._config = config
        self._metrics = metrics
        self._node: WorkerNode | None = None
        self._engine_loop: EngineLoop | None = None
        self._sender: Sender | None = None
        self._jobs: Jobs | None = None
        self._health: Health | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Loads the model, listens, and starts to dial the routers. Returns the gRPC address."""
        spec = self._spec
        # The native decode step would keep a second copy of the weights, and never run: it calls no layer hook.
        config = spec.engine.model_copy(update={"native_kernels": "off"})
        engine = await asyncio.to_thread(Engine.load, spec.model_dir, config, self._metrics, progress=spec.report_weights)
        node = self._node = WorkerNode(cluster_pb2.ROLE_PREFILL, spec, engine, self._metrics, [SERVICE])
        self._sender = Sender(spec.transfer, node.layout, engine.pool.data, node.incarnation, self._metrics)
        hold = Hold(spec.link.hold_folder, spec.name)
        jobs = self._jobs = Jobs(engine, self._sender, node.peer, self._config, spec.tracing, hold)
        engine.on_layer = jobs.engine_side.on_layer

        def publish(updates: list[SequenceUpdate]) -> None:
            jobs.engine_side.on_computed(updates)
            health.on_updates(updates)

        engine_loop = self._engine_loop = EngineLoop(engine, publish=publish)
        sender = self._sender
        health = self._health = Health(engine, engine_loop.submit, lambda: sender.proofs, spec.health, self._metrics)
        jobs.attach(engine_loop)
        engine_loop.start()
        self._watching = asyncio.create_task(health.run(), name="health")
        cluster_pb2_grpc.add_PrefillServiceServicer_to_server(PrefillService(jobs), node.server.server)
        address = await node.listen()
        node.dial_routers(NoOrders(), jobs.describe_load)
        logger.info("serving on %s", address)
        return address

    @property
    def why_not_healthy(self) -> str | None:
        """Why only a new process helps; None: it goes on."""
        if self._engine_loop is None or self._health is None:
            return "the worker is starting"
        if not self._engine_loop.is_healthy:
            return "the engine has stopped, or its steps keep failing"
        return self._health.why_not

    @property
    def has_joined(self) -> bool:
        """At least one router knows this worker."""
        return self._node is not None and self._node.has_joined

    async def drain(self, timeout_s: float) -> None:
        if self._node is not None and self._jobs is not None:
            await self._node.drain()
            await self._jobs.drain(timeout_s)

    async def stop(self, timeout_s: float) -> None:
        """Open calls are cut; nothing is written any more when it returns."""
        if self._watching is not None:
            self._watching.cancel()
        if self._node is not None:
            await self._node.stop(grace_s=min(1.0, timeout_s))
        if self._engine_loop is not None:
            await asyncio.to_thread(self._engine_loop.close, timeout_s)
        if self._sender is not None:
            await asyncio.to_thread(self._sender.close, timeout_s)


class NoOrders:
    """Routers give prefill workers no orders: their work comes from decode workers."""

    def on_submit(self, link: RouterLink, submit: cluster_pb2.Submit) -> None:
        logger.warning("router %s submitted a request to a prefill worker; ignored", link.address)

    def on_cancel(self, link: RouterLink, request: int) -> None:
        pass

    def on_lost(self, link: RouterLink) -> None:
        pass
