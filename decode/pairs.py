"""What this decode worker knows of its prefill workers: who is avoided, and the probes that bring them back.

A probe is a real transfer of one KV block: a prompt is computed there, written here, copied and verified, and nobody reads it.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from decode.pair_health import PairHealth
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, Overloaded, ServalError, TransferAborted
from protocol.ids import Incarnation, ProcessIdentity
from telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_S = 0.25

Probe = Callable[[cluster_pb2.Peer, str], Awaitable[None]]
"""(whom, what the probe is called): moves one block. Raises ServalError."""


class Pairs:
    """Lives on the event loop."""

    def __init__(self, probe: Probe, metrics: Metrics) -> None:
        self._probe = probe
        self._metrics = metrics
        self._by_incarnation: dict[Incarnation, tuple[cluster_pb2.Peer, PairHealth]] = {}
        self._numbers = itertools.count(1)
        self._probing: dict[Incarnation, asyncio.Task[None]] = {}

    @property
    def avoided(self) -> list[Incarnation]:
        """Whom routers should not pair with this worker."""
        return [incarnation for incarnation, (_, health) in self._by_incarnation.items() if health.is_avoided]

    def is_avoided(self, peer: cluster_pb2.Peer) -> bool:
        known = self._by_incarnation.get(Incarnation(peer.incarnation))
        return known is not None and known[1].is_avoided

    def failed(self, peer: cluster_pb2.Peer, error: ServalError) -> None:
        """What a prompt met there. A worker that is full, or a prompt that is wrong or given up, says nothing of the pair."""
        if isinstance(error, InvalidRequest | Overloaded | TransferAborted):
            return
        incarnation = Incarnation(peer.incarnation)
        _, health = self._by_incarnation.setdefault(incarnation, (peer, PairHealth()))
        was_avoided = health.is_avoided
        health.failed(time.monotonic())
        if health.is_avoided and not was_avoided:
            logger.warning("%s is avoided: transfers from there keep failing (%s)", peer.name, error)
        self._count()

    def worked(self, peer: cluster_pb2.Peer) -> None:
        """A prompt's KV has come from there."""
        if self._by_incarnation.pop(Incarnation(peer.incarnation), None) is not None:
            self._count()

    async def run(self) -> None:
        """Probes those avoided, each at its time and in the background; never returns."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            for incarnation, (peer, health) in list(self._by_incarnation.items()):
                if health.is_hopeless or health.is_forgotten(now) or ProcessIdentity.from_proto(peer.process).is_gone():
                    del self._by_incarnation[incarnation]
                elif health.is_due(now) and incarnation not in self._probing:
                    task = asyncio.create_task(self._try(peer, health), name=f"probe-{peer.name}")
                    self._probing[incarnation] = task
                    task.add_done_callback(partial(self._forget_probe, incarnation))
            self._count()

    def _forget_probe(self, incarnation: Incarnation, _: "asyncio.Task[None]") -> None:
        del self._probing[incarnation]

    async def _try(self, peer: cluster_pb2.Peer, health: PairHealth) -> None:
        try:
            await self._probe(peer, f"probe-{next(self._numbers)}")
        except ServalError as error:
            logger.info("%s is still avoided: %s", peer.name, error)
            health.probe_failed(time.monotonic())
            self._metrics.pair_probes.of(result="failed").inc()
        else:
            logger.info("%s works again", peer.name)
            health.worked()
            self._metrics.pair_probes.of(result="passed").inc()

    def _count(self) -> None:
        self._metrics.pairs_avoided.of().set(len(self.avoided))
