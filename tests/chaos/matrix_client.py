"""Clients of the matrix: each asks one thing and notes when it got which token, and how it ended."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import httpx
from cluster_clients import FINISH, Ask, SseAnswer, read_sse

from protocol import serval_pb2_grpc

ANSWER_TIMEOUT_S = 90.0
"""The request's deadline: beyond every wait that a fault can cause."""
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    # As docs/api.md tells clients: who waits in silence hears only so that its router is out of reach.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


@dataclass(frozen=True)
class Front:
    """Where one router answers."""

    router: str
    http: str
    grpc: str
    model: str


@dataclass(eq=False)
class Client:
    """Asks in the background. After `done` it has a finish or an error, never neither: a stream that just stops is an error of
    ours, `silent`."""

    ask: Ask
    front: Front
    over_http: bool = False
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    """Over HTTP, where no token ids are told."""
    heard_at: list[float] = field(default_factory=list)
    """time.monotonic() of every message that brought something."""
    finish: str | None = None
    error: str | None = None
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self.done = asyncio.create_task(self._run(), name=f"client of {self.front.router}")

    @property
    def has_begun(self) -> bool:
        return bool(self.heard_at)

    @property
    def prompt_tokens(self) -> int:
        """By which the processes know it: no two prompts of a cell are of one length."""
        return len(self.ask.prompt)

    def first_heard_after(self, moment: float) -> float | None:
        return next((at for at in self.heard_at if at > moment), None)

    async def _run(self) -> None:
        try:
            await asyncio.wait_for(self._over_http() if self.over_http else self._over_grpc(), ANSWER_TIMEOUT_S + 5)
        except TimeoutError:
            self.error = "silent: no end came within its deadline"
        except Exception as error:
            self.error = f"not to be understood: {error!r}"
        self.ended_at = time.monotonic()
        if self.finish is None and self.error is None:
            self.error = "silent: the stream stopped without a word"

    async def _over_grpc(self) -> None:
        async with grpc.aio.insecure_channel(self.front.grpc, options=CHANNEL_OPTIONS) as channel:
            stub: Any = serval_pb2_grpc.ServalStub(channel)
            call = stub.Generate(self.ask.to_proto(), timeout=ANSWER_TIMEOUT_S)
            try:
                async for message in call:
                    if message.token_ids:
                        self.token_ids += message.token_ids
                        self.heard_at.append(time.monotonic())
                    if message.HasField("finish"):
                        self.finish = FINISH[message.finish.reason]
            except grpc.aio.AioRpcError as error:
                self.error = f"{error.code().name}: {error.details()}"
            finally:
                call.cancel()

    async def _over_http(self) -> None:
        params = self.ask.params
        body = {"model": self.front.model, "prompt": self.ask.prompt, "stream": True, "max_tokens": params.max_tokens}
        body |= {"temperature": params.temperature, "seed": params.seed, "top_k": params.top_k, "ignore_eos": params.ignore_eos}
        answer = SseAnswer()
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=10.0)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=False, verify=False) as http,
                http.stream("POST", f"{self.front.http}/v1/completions", json=body) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    self.error = f"HTTP {response.status_code}: {json.loads(await response.aread())['error']['message']}"
                    return
                async for _ in read_sse(response, answer):
                    if answer.text != self.text:
                        self.text = answer.text
                        self.heard_at.append(time.monotonic())
        except httpx.TransportError as error:
            self.error = f"connection broke: {type(error).__name__} {error}".strip()
            return
        if answer.ended == "done":
            self.finish = str(answer.events[-1]["choices"][0]["finish_reason"])
        elif answer.ended == "error":
            self.error = f"error event: {(answer.error or {}).get('code')}: {(answer.error or {}).get('message')}"
