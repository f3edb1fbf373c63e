"""The decode worker: one process's engine, receiver and requests, put together.

worker = DecodeWorker(spec, DecodeConfig(), metrics)
address = await worker.start()   # model loaded, serving, dialling routers
await worker.drain(timeout_s=30) # no new work; returns when idle or at the deadline
await worker.stop(timeout_s=5)
"""

import asyncio
import logging
from collections.abc import Iterable

from decode.admission import AdmissionLine
from decode.break_even import BreakEven
from decode.config import DecodeConfig
from decode.pairs import Pairs
from decode.parts import Parts
from decode.prefill_client import PrefillPeers
from decode.probe import probe
from decode.quarantine import Quarantine
from decode.requests import Requests
from engine.engine import Engine
from engine.loop import EngineLoop
from engine.sequence import SequenceUpdate
from kvtransfer.receiver import Receiver
from protocol import cluster_pb2
from telemetry.metrics import Metrics
from telemetry.recent import RecentRate
from worker.health import Health
from worker.hold import Hold
from worker.node import WorkerNode
from worker.spec import WorkerSpec

logger = logging.getLogger(__name__)


class DecodeWorker:
    """All methods belong to one event loop."""

    def __init__(self, spec: WorkerSpec, config: DecodeConfig, metrics: Metrics) -> None:
        self._spec = spec
        self._config = config
        self._metrics = metrics
        self._node: WorkerNode | None = None
        self._parts: Parts | None = None
        self._requests: Requests | None = None
        self._health: Health | None = None
        self._janitors: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Loads the model, listens, and starts to dial the routers. Returns the gRPC address."""
        spec = self._spec
        engine = await asyncio.to_thread(Engine.load, spec.model_dir, spec.engine, self._metrics, progress=spec.report_weights)
        node = self._node = WorkerNode(cluster_pb2.ROLE_DECODE, spec, engine, self._metrics, [])
        receiver = Receiver(spec.transfer, node.layout, engine.pool.data, node.incarnation, self._metrics)
        address = await node.listen()
        loop = asyncio.get_running_loop()

        def publish(updates: Iterable[SequenceUpdate]) -> None:
            loop.call_soon_threadsafe(requests.on_updates, updates)
            requests.hold_step(updates)
            health.on_updates(updates)

        peers = PrefillPeers(lambda: _introduction(node, receiver), self._config.connect_timeout_s, spec.tls)
        line = AdmissionLine(self._config.max_waiting, self._metrics)
        quarantine = Quarantine(receiver, peers, self._config, on_freed=line.advance)
        pairs = Pairs(lambda peer, name: probe(parts, peer, name), self._metrics)
        parts = self._parts = Parts(
            incarnation=node.incarnation,
            engine=engine,
            engine_loop=EngineLoop(engine, publish=publish),
            receiver=receiver,
            peers=peers,
            quarantine=quarantine,
            line=line,
            break_even=BreakEven(
                self._config.local_prefill_max_tokens, engine.kv_cache.block_size, spec.engine.max_batch_tokens
            ),
            transfers=RecentRate(),
            config=self._config,
            metrics=self._metrics,
            tracing=spec.tracing,
            hold=Hold(spec.link.hold_folder, spec.name),
            pairs=pairs,
        )
        requests = self._requests = Requests(parts)
        health = self._health = Health(engine, parts.engine_loop.submit, lambda: receiver.proofs, spec.health, self._metrics)
        parts.engine_loop.start()
        self._janitors = [
            asyncio.create_task(quarantine.run(), name="quarantine"),
            asyncio.create_task(health.run(), name="health"),
            asyncio.create_task(pairs.run(), name="pairs"),
        ]
        node.dial_routers(requests, requests.describe_load)
        logger.info("serving on %s", address)
        return address

    @property
    def why_not_healthy(self) -> str | None:
        """Why only a new process helps; None: it goes on."""
        if self._parts is None or self._health is None:
            return "the worker is starting"
        if not self._parts.engine_loop.is_healthy:
            return "the engine has stopped, or its steps keep failing"
        return self._health.why_not

    @property
    def has_joined(self) -> bool:
        """At least one router knows this worker."""
        return self._node is not None and self._node.has_joined

    async def drain(self, timeout_s: float) -> None:
        if self._node is not None and self._requests is not None:
            await self._node.drain()
            await self._requests.drain(timeout_s)

    async def stop(self, timeout_s: float) -> None:
        """Open requests are handed back; nothing of this worker runs any more when it returns."""
        for janitor in self._janitors:
            janitor.cancel()
        if self._requests is not None:
            await self._requests.hand_back_all(timeout_s)
        if self._node is not None:
            await self._node.stop(grace_s=min(1.0, timeout_s))
        if self._parts is not None:
            await self._parts.peers.close()
            await asyncio.to_thread(self._parts.engine_loop.close, timeout_s)
            await asyncio.to_thread(self._parts.receiver.close, timeout_s)


def _introduction(node: WorkerNode, receiver: Receiver) -> cluster_pb2.IntroduceRequest:
    return cluster_pb2.IntroduceRequest(
        decode=node.peer,
        transport_metadata=receiver.metadata,
        layout_fingerprint=receiver.fingerprint,
        landing_address=receiver.landing_address,
        landing_blocks=receiver.landing_blocks,
    )
