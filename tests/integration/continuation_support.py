"""A router, a prefill worker and two decode workers, real to the last byte, in one process; and a knife that ends a decode worker's
stream in the middle of an answer, at a token that the test names."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from decode.config import DecodeConfig
from decode.worker import DecodeWorker
from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from prefill.config import PrefillConfig
from prefill.worker import PrefillWorker
from protocol import cluster_pb2
from router.workers import DECODE, Membership, Worker
from telemetry.metrics import Metrics
from tests.integration.router_support import WAIT_S, Cluster, cluster
from worker.config import HealthConfig, LinkConfig
from worker.spec import WorkerSpec

MODEL = "tiny"
OnStep = Callable[[Worker, cluster_pb2.StepOutput], None]


class Knife:
    """Between the workers' streams and the dispatcher. When it is armed, the router gets an answer up to the token at which it is
    to be cut, and then loses the worker, as when that was killed: whatever else it had said is lost."""

    def __init__(self, members: Membership, on_step: OnStep) -> None:
        self._members = members
        self._on_step = on_step
        self._cuts: list[int] = []
        self.cut_at: list[int] = []
        """Tokens that the client had at each cut since it was armed."""

    def arm(self, *cuts: int) -> None:
        """To cut when any answer has so many tokens, one cut after the other."""
        self._cuts, self.cut_at = sorted(cuts), []

    def on_step(self, worker: Worker, step: cluster_pb2.StepOutput) -> None:
        for output in step.outputs:
            request = worker.open_requests.get(output.request)
            if self._cuts and request is not None:
                left = self._cuts[0] - len(request.output)
                if 0 <= left <= len(output.token_ids):
                    self._cut(worker, step, output, left)
                    return
        self._on_step(worker, step)

    def _cut(self, worker: Worker, step: cluster_pb2.StepOutput, output: cluster_pb2.RequestOutput, left: int) -> None:
        self.cut_at.append(self._cuts.pop(0))
        if left:
            del output.token_ids[left:]
            del output.logprobs[left:]
            output.ClearField("ended")
            self._on_step(worker, step)
        self._members.leave(worker, "it was cut off")


class ContinuationCluster:
    def __init__(self, front: Cluster, knife: Knife, members: Membership) -> None:
        self.front, self.knife, self._members = front, knife, members

    async def until_whole(self) -> None:
        """Both decode workers are there."""
        await self.front.until(lambda: len(self._members.pool(DECODE)) == 2)


@contextlib.asynccontextmanager
async def continuation_cluster(folder: Path) -> AsyncIterator[ContinuationCluster]:
    """The workers guess by n-grams, and move the KV of every prompt."""
    async with cluster(folder, model=MODEL, worker_wait_s=WAIT_S, worker_return_s=WAIT_S) as front:
        workers = [
            PrefillWorker(_spec(front, folder, "prefill-0"), PrefillConfig(), Metrics("prefill", "prefill-0")),
            *(
                DecodeWorker(_spec(front, folder, name), DecodeConfig(local_prefill_max_tokens=0), Metrics("decode", name))
                for name in ("decode-0", "decode-1")
            ),
        ]
        members, internals = front.router.members, front.router._running
        assert members is not None and internals is not None
        knife = Knife(members, internals._dispatcher.on_step)
        internals._dispatcher.on_step = knife.on_step  # type: ignore[method-assign]
        try:
            for worker in workers:
                await worker.start()
            await front.until(lambda: len(members.all) == len(workers))
            yield ContinuationCluster(front, knife, members)
        finally:
            await asyncio.gather(*(worker.stop(5) for worker in workers))


def _spec(front: Cluster, folder: Path, name: str) -> WorkerSpec:
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "kv_memory_bytes": 8 << 20, "check_integrity": True}
    return WorkerSpec(
        name=name,
        host="127.0.0.1",
        routers=(f"127.0.0.1:{front.ports.link}",),
        model=MODEL,
        model_dir=folder,
        engine=EngineConfig(**settings, speculation="ngram"),  # type: ignore[arg-type]
        transfer=TransferConfig(landing_bytes=8 << 20),
        link=LinkConfig(reconnect_min_s=0.01),
        health=HealthConfig(),
    )
