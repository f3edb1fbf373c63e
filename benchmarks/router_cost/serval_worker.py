"""Mock workers of ours: real RouterLink streams to a real router, without an engine behind them."""

import argparse
import asyncio
import secrets
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.router_cost.answers import Answers
from benchmarks.router_cost.mock_engine import MockEngine, Stamps, Token
from benchmarks.router_cost.mock_links import serve_linked
from benchmarks.router_cost.pipe import Json
from protocol import cluster_pb2, cluster_pb2_grpc

HEARTBEAT_S = 0.1
KV_BLOCKS = 1 << 20
BLOCK_TOKENS = 16
MAX_SEQUENCES = 1024
FINGERPRINT = "mock"


class Link:
    """One worker's stream to the router."""

    def __init__(self, hello: cluster_pb2.Hello, answers: Answers, stamps: Stamps) -> None:
        self._hello = hello
        self._writing = asyncio.Lock()  # gRPC takes one message at a time
        self._call: Any = None
        self.joined = asyncio.Event()
        self.engine: MockEngine[cluster_pb2.FromWorker] = MockEngine(answers, stamps, self)

    async def run(self, channel: grpc.aio.Channel) -> None:
        stub: Any = cluster_pb2_grpc.RouterLinkStub(channel)
        self._call = stub.Connect()
        await self.send(cluster_pb2.FromWorker(hello=self._hello))
        await self._call.read()  # Welcome
        self.joined.set()
        await asyncio.gather(self.engine.run(), self._beat(), self._read())

    def encode(self, tokens: list[Token]) -> cluster_pb2.FromWorker:
        outputs = [
            cluster_pb2.RequestOutput(
                request=token.stream.key,
                token_ids=(token.token_id,),
                ended=cluster_pb2.Ended(outcome="length") if token.is_last else None,
            )
            for token in tokens
        ]
        return cluster_pb2.FromWorker(step=cluster_pb2.StepOutput(outputs=outputs))

    async def send(self, message: cluster_pb2.FromWorker) -> None:
        async with self._writing:
            await self._call.write(message)

    async def _beat(self) -> None:
        while True:
            engine = self.engine
            load = cluster_pb2.LoadReport(running=engine.streams, steps=engine.steps, kv_blocks_total=KV_BLOCKS)
            await self.send(cluster_pb2.FromWorker(load=load))
            await asyncio.sleep(HEARTBEAT_S)

    async def _read(self) -> None:
        while (order := await self._call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            kind = order.WhichOneof("kind")
            if kind == "submit":
                self.engine.add(order.submit.request, order.submit.sampling.max_tokens)
            elif kind == "cancel":
                self.engine.remove(order.cancel.request)
        raise ConnectionError("the router ended the stream")


def _hello(role: Any, number: int, model: str) -> cluster_pb2.Hello:
    name = f"{cluster_pb2.Role.Name(role).removeprefix('ROLE_').lower()}-{number}"
    return cluster_pb2.Hello(
        role=role,
        peer=cluster_pb2.Peer(name=name, incarnation=secrets.randbits(63) | 1, address="127.0.0.1:1"),
        model=model,
        layout_fingerprint=FINGERPRINT,
        block_size=BLOCK_TOKENS,
        kv_blocks=KV_BLOCKS,
        max_sequences=MAX_SEQUENCES,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", required=True, help="host:port that workers dial")
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the model's folder")
    parser.add_argument("--workers", type=int, required=True, help="decode workers; streams of their own")
    arguments = parser.parse_args()
    answers = Answers.from_folder(arguments.folder)
    stamps = Stamps(len(answers))
    roles = [cluster_pb2.ROLE_PREFILL, *[cluster_pb2.ROLE_DECODE] * arguments.workers]
    links = [Link(_hello(role, number, arguments.model), answers, stamps) for number, role in enumerate(roles)]

    async def answer(question: Json) -> Json:
        if (pace_s := question.get("pace_s")) is None:
            return {"sent_s": stamps.sent_s}
        stamps.start()
        for link in links:
            link.engine.pace_s = pace_s
        return {}

    await serve_linked(arguments.router, links, answer)


if __name__ == "__main__":
    asyncio.run(main())
