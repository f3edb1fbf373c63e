"""A prefill and a decode worker, real to the last byte, in one process; the test is their router."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import torch

from decode.config import DecodeConfig
from decode.worker import DecodeWorker
from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from prefill.config import PrefillConfig
from prefill.worker import PrefillWorker
from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from worker.config import HealthConfig, LinkConfig
from worker.spec import WorkerSpec

WAIT_S = 20.0
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
"""What the transport itself takes before it is read: the same on every machine."""


@dataclass
class Told:
    """What a decode worker told about one request."""

    outputs: list[cluster_pb2.RequestOutput] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def ended(self) -> cluster_pb2.Ended | None:
        return self.outputs[-1].ended if self.outputs and self.outputs[-1].HasField("ended") else None

    async def until_tokens(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.tokens) < count and self.ended is None:
                self.news.clear()
                await self.news.wait()

    async def until_ended(self) -> cluster_pb2.Ended:
        await self.until_tokens(1 << 30)
        assert self.ended is not None
        return self.ended


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def params_of(**params: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | params)


class TestRouter(cluster_pb2_grpc.RouterLinkServicer):
    """The router's end of the workers' streams."""

    __test__ = False

    def __init__(self) -> None:
        self.peers: dict[str, cluster_pb2.Peer] = {}
        self.told: dict[int, Told] = {}
        self.loads: dict[str, cluster_pb2.LoadReport] = {}
        """The last report of each worker."""
        self._numbers = itertools.count(1)
        self._orders: asyncio.Queue[cluster_pb2.FromRouter] = asyncio.Queue()
        self._joined, self._reported = asyncio.Event(), asyncio.Event()
        self.streams = 0
        """Of decode workers, so far."""
        self.reads = asyncio.Event()
        """While it is not set nothing of what workers say is taken."""
        self.reads.set()

    async def Connect(self, messages: Any, context: Any) -> AsyncIterator[cluster_pb2.FromRouter]:  # noqa: N802
        hello = (await anext(aiter(messages))).hello
        self.peers[hello.peer.name] = hello.peer
        yield cluster_pb2.FromRouter(welcome=cluster_pb2.Welcome(router=cluster_pb2.Peer(name="router-0", incarnation=1)))
        self.streams += hello.role == cluster_pb2.ROLE_DECODE
        reader = asyncio.create_task(self._read(hello.peer.name, messages))
        self._joined.set()
        try:
            while hello.role == cluster_pb2.ROLE_DECODE:
                yield await self._orders.get()
            await reader
        finally:
            reader.cancel()

    async def until_joined(self, *names: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self.peers.keys() >= set(names):
                self._joined.clear()
                await self._joined.wait()

    def submit(
        self, prompt: list[int], params: SamplingParams, *, prefill: str | None = "prefill-0", output_tokens: int = 0
    ) -> Told:
        """`prefill`: the worker to compute the prompt; None: the decode worker itself."""
        number = next(self._numbers)
        told = self.told[number] = Told()
        submit = cluster_pb2.Submit(
            request=number,
            request_id=f"request-{number}",
            prompt=prompt,
            sampling=params.to_proto(),
            prefill=self.peers[prefill] if prefill else None,
            timeout_s=WAIT_S,
            output_tokens=output_tokens,
        )
        self._orders.put_nowait(cluster_pb2.FromRouter(submit=submit))
        return told

    def cancel(self, told: Told) -> None:
        number = next(number for number, each in self.told.items() if each is told)
        self._orders.put_nowait(cluster_pb2.FromRouter(cancel=cluster_pb2.Cancel(request=number)))

    async def until_reported(self, name: str, is_so: Callable[[cluster_pb2.LoadReport], bool]) -> cluster_pb2.LoadReport:
        async with asyncio.timeout(WAIT_S):
            while not is_so(self.loads.get(name, cluster_pb2.LoadReport())):
                self._reported.clear()
                await self._reported.wait()
        return self.loads[name]

    async def _read(self, name: str, messages: Any) -> None:
        async for message in messages:
            if message.HasField("load"):
                self.loads[name] = message.load
                self._reported.set()
            for output in message.step.outputs:
                told = self.told[output.request]
                told.outputs.append(output)
                told.news.set()
            await self.reads.wait()


@dataclass
class Pair:
    """`make_prefill` and `make_decode` give a worker with another incarnation, on the port asked for."""

    router: TestRouter
    make_prefill: Callable[[Metrics, int], PrefillWorker]
    make_decode: Callable[[Metrics, int], DecodeWorker]

    async def start(self) -> None:
        await self._start_prefill(0)
        await self._start_decode(0)
        await self.router.until_joined("prefill-0", "decode-0")

    async def stop(self) -> None:
        await self.decode.stop(5)
        await self.prefill.stop(5)

    async def replace_prefill(self) -> None:
        """Cuts it short, whatever it has in hand; another takes its place at its address."""
        port = self._forget("prefill-0")
        await self.prefill.stop(0)
        await self._start_prefill(port)
        await self.router.until_joined("prefill-0")

    async def replace_decode(self) -> None:
        port = self._forget("decode-0")
        await self.decode.stop(0)
        await self._start_decode(port)
        await self.router.until_joined("decode-0")

    def _forget(self, name: str) -> int:
        return int(self.router.peers.pop(name).address.rpartition(":")[2])

    async def _start_prefill(self, port: int) -> None:
        self.prefill_metrics = Metrics("prefill", "prefill-0")
        self.prefill = self.make_prefill(self.prefill_metrics, port)
        await self.prefill.start()

    async def _start_decode(self, port: int) -> None:
        self.decode_metrics = Metrics("decode", "decode-0")
        self.decode = self.make_decode(self.decode_metrics, port)
        await self.decode.start()


@contextlib.asynccontextmanager
async def running_pair(
    model_dir: Path,
    *,
    engine: dict[str, Any] | None = None,
    prefill_engine: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    transfer: dict[str, Any] | None = None,
    health: HealthConfig | None = None,
    link: LinkConfig | None = None,
) -> AsyncIterator[Pair]:
    """`prefill_engine`: what is other there."""
    router = TestRouter()
    server = grpc.aio.server(options=NARROW)
    cluster_pb2_grpc.add_RouterLinkServicer_to_server(router, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "kv_memory_bytes": 8 << 20, "check_integrity": True}

    def spec(name: str, port: int, own: dict[str, Any]) -> WorkerSpec:
        return WorkerSpec(
            name=name,
            host="127.0.0.1",
            port=port,
            routers=(address,),
            model="tiny",
            model_dir=model_dir,
            engine=EngineConfig(**settings | (engine or {}) | own),
            transfer=TransferConfig(**{"landing_bytes": 8 << 20} | (transfer or {})),
            link=link or LinkConfig(),
            health=health or HealthConfig(),
        )

    def make_prefill(metrics: Metrics, port: int) -> PrefillWorker:
        return PrefillWorker(spec("prefill-0", port, prefill_engine or {}), PrefillConfig(), metrics)

    def make_decode(metrics: Metrics, port: int) -> DecodeWorker:
        return DecodeWorker(spec("decode-0", port, {}), DecodeConfig(**decode or {}), metrics)

    pair = Pair(router, make_prefill, make_decode)
    try:
        await pair.start()
        yield pair
    finally:
        await pair.stop()
        await server.stop(1)
