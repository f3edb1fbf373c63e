"""A decode worker's engine without a model: each step gives every running stream one token, back to back or at a pace."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from benchmarks.router_cost.answers import Answers

Message = TypeVar("Message")


@dataclass(eq=False)
class Stream:
    """One request. `key` is the connection's own name for it."""

    key: Any
    number: int
    wanted_tokens: int
    sent_tokens: int = 0


@dataclass(frozen=True)
class Token:
    stream: Stream
    token_id: int
    is_last: bool


class Connection(Protocol[Message]):
    """Where tokens go."""

    def encode(self, tokens: list[Token]) -> Message: ...

    async def send(self, message: Message) -> None:
        """Returns when flow control has let it through."""


class Stamps:
    """When each token was sent, by request; shared by the engines of a process. Seconds of `time.perf_counter()`, which is one
    clock for all processes of a machine."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self.start()

    def start(self) -> None:
        """A new measurement."""
        self.sent_s: dict[int, list[float]] = {}
        self._numbers = iter(range(self._requests))

    def next_number(self) -> int:
        """For a new request. Raises when a measurement has more requests than answers that can be told apart."""
        number = next(self._numbers, None)
        if number is None:
            raise RuntimeError(f"more than {self._requests} requests in one measurement")
        self.sent_s[number] = []
        return number


class MockEngine(Generic[Message]):
    """A request's first token goes out by itself, at once, as after a real prefill; the others with the steps."""

    def __init__(self, answers: Answers, stamps: Stamps, connection: Connection[Message]) -> None:
        self._answers = answers
        self._stamps = stamps
        self._connection = connection
        self._fresh: list[Stream] = []
        self._running: list[Stream] = []
        self._news = asyncio.Event()
        self._due = 0.0
        self.pace_s = 0.0
        """Seconds from step to step; 0: as fast as the connection takes them."""
        self.steps = 0

    @property
    def streams(self) -> int:
        return len(self._fresh) + len(self._running)

    def add(self, key: Any, tokens: int) -> None:
        self._fresh.append(Stream(key, self._stamps.next_number(), tokens))
        self._news.set()

    def remove(self, key: Any) -> None:
        self._fresh = [stream for stream in self._fresh if stream.key != key]
        self._running = [stream for stream in self._running if stream.key != key]

    async def run(self) -> None:
        while True:
            if not self.streams:
                await self._wait_for_news(None)
            if self._fresh:
                fresh, self._fresh = self._fresh, []
                self._running += fresh
                await self._step(fresh)
            elif await self._is_due():
                await self._step(self._running)

    async def _is_due(self) -> bool:
        """True when it is time for a step, False when a request has come before it."""
        if not self.pace_s:
            return True
        now = asyncio.get_running_loop().time()
        if now < self._due and await self._wait_for_news(self._due):
            return False
        self._due = max(self._due, now - self.pace_s) + self.pace_s
        return True

    async def _wait_for_news(self, until: float | None) -> bool:
        self._news.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _step(self, streams: list[Stream]) -> None:
        tokens = []
        for stream in streams:
            token_id = self._answers.token(stream.number, stream.sent_tokens)
            stream.sent_tokens += 1
            tokens.append(Token(stream, token_id, stream.sent_tokens == stream.wanted_tokens))
        self._running = [stream for stream in self._running if stream.sent_tokens < stream.wanted_tokens]
        self.steps += 1
        message = self._connection.encode(tokens)
        now = time.perf_counter()
        for token in tokens:
            self._stamps.sent_s[token.stream.number].append(now)
        await self._connection.send(message)
