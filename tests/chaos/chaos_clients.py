"""Clients that ask one thing and note all that they saw: tokens or text per answer, how each ended, and when."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import httpx
from chaos_asks import ChaosAsk
from cluster_clients import FINISH, SseAnswer, read_sse

from protocol import serval_pb2_grpc

TIMEOUT_S = 120.0
"""A request's deadline: long beside any recovery."""

CONNECTIONS = 4
"""gRPC channels that clients share: one alone would be the limit."""


@dataclass
class Said:
    """What a client saw. `ended`: done, cancelled (by itself), or what went wrong."""

    ask: ChaosAsk
    over_http: bool = False
    tokens: dict[int, list[int]] = field(default_factory=dict)
    """By answer, over gRPC."""
    finishes: dict[int, str] = field(default_factory=dict)
    text: str = ""
    """Over HTTP."""
    ended: str = ""
    ttft_s: float | None = None
    longest_pause_s: float = 0.0
    """Without a message, the wait for the first one included."""
    seconds: float = 0.0

    @property
    def is_success(self) -> bool:
        return self.ended == "done"

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))


class Clients:
    """`async with Clients(...)`: `ask` never raises for what a cluster may do to a request."""

    def __init__(self, grpc_address: str, url: str, model: str) -> None:
        self._grpc_address = grpc_address
        self._url = url
        self._model = model

    async def __aenter__(self) -> "Clients":
        self._stack = contextlib.AsyncExitStack()
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self._grpc_address, options=options) for _ in range(CONNECTIONS)]
        for channel in channels:
            await self._stack.enter_async_context(channel)
        self._stubs: list[Any] = [serval_pb2_grpc.ServalStub(channel) for channel in channels]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = await self._stack.enter_async_context(
            httpx.AsyncClient(timeout=httpx.Timeout(TIMEOUT_S, connect=5.0), trust_env=False, limits=limits)
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    async def ask(self, ask: ChaosAsk, *, over_http: bool = False) -> Said:
        said = Said(ask, over_http)
        started_s = seen_s = time.monotonic()
        growing = self._over_http(said) if over_http else self._over_grpc(said)
        async with contextlib.aclosing(growing):
            async for _ in growing:
                now_s = time.monotonic()
                said.ttft_s = said.ttft_s or now_s - started_s
                said.longest_pause_s = max(said.longest_pause_s, now_s - seen_s)
                seen_s = now_s
        said.seconds = time.monotonic() - started_s
        said.longest_pause_s = max(said.longest_pause_s, time.monotonic() - seen_s)
        assert said.ended, said
        return said

    async def _over_grpc(self, said: Said) -> AsyncIterator[None]:
        ask = said.ask
        call = self._stubs[ask.number % CONNECTIONS].Generate(ask.to_proto(), timeout=TIMEOUT_S)
        try:
            if ask.cancel_after == 0:
                await asyncio.sleep(0)  # the call has left
                said.ended = "cancelled"
                return
            async for message in call:
                said.tokens.setdefault(message.index, []).extend(message.token_ids)
                if message.HasField("finish"):
                    assert message.index not in said.finishes, "an answer ended twice"
                    said.finishes[message.index] = FINISH[message.finish.reason]
                yield
                if ask.cancel_after is not None and said.num_tokens >= ask.cancel_after and not said.finishes:
                    said.ended = "cancelled"
                    return
            said.ended = "done" if len(said.finishes) == ask.answers else "ended without a finish"
        except grpc.aio.AioRpcError as error:
            said.ended = f"{error.code().name}: {error.details()}"
        finally:
            call.cancel()

    async def _over_http(self, said: Said) -> AsyncIterator[None]:
        params = said.ask.params
        body = {"model": self._model, "prompt": said.ask.prompt, "stream": True, "max_tokens": params.max_tokens}
        body |= {"temperature": params.temperature, "top_p": params.top_p, "seed": params.seed, "ignore_eos": params.ignore_eos}
        answer = SseAnswer()
        try:
            async with self._http.stream("POST", f"{self._url}/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    said.ended = f"HTTP {response.status_code}: {json.loads(await response.aread())['error']['message']}"
                    return
                async for _ in read_sse(response, answer):
                    said.text = answer.text
                    yield
        except httpx.TransportError as error:
            said.ended = f"connection: {error!r}"
            return
        error_text = str((answer.error or {}).get("message"))
        said.ended = answer.ended if answer.ended != "error" else f"error event: {error_text}"
