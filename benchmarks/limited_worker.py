"""Decode workers without a model, but with a worker's limits: prompts are computed one at a time at a given speed, so many answers
grow at once, one token per step, and the rest waits in a line, first come, first served. Real RouterLink streams to a real router.

    python -m benchmarks.limited_worker --router HOST:PORT --model NAME --workers 4
"""

import argparse
import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from benchmarks.router_cost.mock_links import serve_linked
from benchmarks.router_cost.pipe import Json
from protocol import cluster_pb2, cluster_pb2_grpc

HEARTBEAT_S = 0.1
KV_BLOCKS = 1 << 20
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """What one worker can do."""

    sequences: int
    prefill_tokens_per_s: float
    step_s: float


@dataclass
class Answer:
    """One request. Its tokens are all alike: the prompt's first."""

    request: int
    prompt_tokens: int
    token_id: int
    left: int


class LimitedEngine:
    """What stands for a worker's engine. `say` gets each step's outputs."""

    def __init__(self, limits: Limits, say: Callable[[list[cluster_pb2.RequestOutput]], None]) -> None:
        self._limits = limits
        self._say = say
        self._line: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._computing: Answer | None = None
        self._steps = 0
        self._busy_s: dict[int, float] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(self._compute(), self._step())

    def obey(self, order: cluster_pb2.FromRouter) -> None:
        """Takes a Submit or a Cancel."""
        if order.HasField("submit"):
            submit = order.submit
            left = submit.sampling.max_tokens - submit.output_tokens
            self._line.append(Answer(submit.request, len(submit.prompt), submit.prompt[0], left))
            self._news.set()
        elif order.HasField("cancel"):
            self._forget(order.cancel.request)

    @property
    def load(self) -> cluster_pb2.LoadReport:
        waiting = [*self._line, *([self._computing] if self._computing else [])]
        return cluster_pb2.LoadReport(
            running=len(self._running),
            waiting=len(waiting),
            steps=self._steps,
            kv_blocks_total=KV_BLOCKS,
            queued_tokens=sum(answer.prompt_tokens for answer in waiting),
            prefill_tokens_per_s=self._limits.prefill_tokens_per_s,
            step_s=self._limits.step_s,
        )

    def _forget(self, request: int) -> None:
        self._line = deque(answer for answer in self._line if answer.request != request)
        self._running = [answer for answer in self._running if answer.request != request]
        if self._computing is not None and self._computing.request == request:
            self._computing.left = 0
        self._say([cluster_pb2.RequestOutput(request=request, ended=self._ended(request, "cancelled"))])

    async def _compute(self) -> None:
        """Prompts, one after the other, while a sequence is free for the answer."""
        while True:
            self._news.clear()
            if not self._line or len(self._running) >= self._limits.sequences:
                await self._news.wait()
                continue
            answer = self._computing = self._line.popleft()
            seconds = answer.prompt_tokens / self._limits.prefill_tokens_per_s
            await asyncio.sleep(seconds)
            self._computing = None
            if answer.left:  # else it was cancelled
                self._busy_s[answer.request] = seconds
                self._give([answer])
                self._running += [answer] if answer.left else []

    async def _step(self) -> None:
        while True:
            await asyncio.sleep(self._limits.step_s)
            if self._running:
                self._give(self._running)
                self._running = [answer for answer in self._running if answer.left]
                self._news.set()

    def _give(self, answers: list[Answer]) -> None:
        self._steps += 1
        outputs = []
        for answer in answers:
            answer.left -= 1
            ended = None if answer.left else self._ended(answer.request, "length")
            outputs.append(cluster_pb2.RequestOutput(request=answer.request, token_ids=[answer.token_id], ended=ended))
        self._say(outputs)

    def _ended(self, request: int, outcome: str) -> cluster_pb2.Ended:
        busy_s = self._busy_s.pop(request, 0.0)
        timings = cluster_pb2.Timings(prefill_s=busy_s, decode_busy_s=busy_s, prefilled_locally=True)
        return cluster_pb2.Ended(outcome=outcome, timings=timings)


class LimitedWorker:
    """One worker's stream, with such an engine behind it."""

    def __init__(self, number: int, model: str, limits: Limits) -> None:
        self._engine = LimitedEngine(limits, self._say)
        self._outbox: asyncio.Queue[cluster_pb2.FromWorker] = asyncio.Queue()
        self.joined = asyncio.Event()
        self._outbox.put_nowait(cluster_pb2.FromWorker(hello=hello_of(number, model, limits)))

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Until the router ends the stream, which raises."""
        stub: Any = cluster_pb2_grpc.RouterLinkStub(channel)
        call = stub.Connect()
        await asyncio.gather(self._write(call), self._read(call), self._beat(), self._engine.run())

    async def _write(self, call: Any) -> None:
        while True:
            await call.write(await self._outbox.get())

    async def _read(self, call: Any) -> None:
        while (order := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            if order.HasField("welcome"):
                self.joined.set()
            self._engine.obey(order)
        raise ConnectionError("the router ended the stream")

    async def _beat(self) -> None:
        while True:
            self._outbox.put_nowait(cluster_pb2.FromWorker(load=self._engine.load))
            await asyncio.sleep(HEARTBEAT_S)

    def _say(self, outputs: list[cluster_pb2.RequestOutput]) -> None:
        self._outbox.put_nowait(cluster_pb2.FromWorker(step=cluster_pb2.StepOutput(outputs=outputs)))


def hello_of(number: int, model: str, limits: Limits) -> cluster_pb2.Hello:
    """How such a worker introduces itself."""
    return cluster_pb2.Hello(
        role=cluster_pb2.ROLE_DECODE,
        peer=cluster_pb2.Peer(name=f"decode-{number}", incarnation=secrets.randbits(63) | 1, address="127.0.0.1:1"),
        model=model,
        layout_fingerprint="none",
        block_size=BLOCK_TOKENS,
        kv_blocks=KV_BLOCKS,
        max_sequences=limits.sequences,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", required=True, help="host:port that workers dial")
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--sequences", type=int, default=16, help="answers that grow at once, per worker")
    parser.add_argument("--prefill-tokens-per-s", type=float, default=20_000.0)
    parser.add_argument("--step-ms", type=float, default=10.0)
    arguments = parser.parse_args()
    limits = Limits(arguments.sequences, arguments.prefill_tokens_per_s, arguments.step_ms / 1e3)
    workers = [LimitedWorker(number, arguments.model, limits) for number in range(arguments.workers)]

    async def answer(question: Json) -> Json:
        return {}

    await serve_linked(arguments.router, workers, answer)


if __name__ == "__main__":
    asyncio.run(main())
