"""Clients of a cluster under test: gRPC for exact token ids, raw HTTP for what curl sees."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio
import httpx
from cluster_harness import RunningCluster, client

from protocol import serval_pb2, serval_pb2_grpc
from protocol.sampling import SamplingParams

ANSWER_TIMEOUT_S = 300.0
GREEDY = SamplingParams(temperature=0.0)
FINISH = {serval_pb2.FINISH_REASON_STOP: "stop", serval_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass(frozen=True)
class Ask:
    """One request: the same words for the cluster and for the one process that it is compared with."""

    prompt: tuple[int, ...]
    params: SamplingParams

    @classmethod
    def greedy(cls, prompt: Sequence[int], max_tokens: int, *, ignore_eos: bool = False) -> "Ask":
        return cls(tuple(prompt), replace(GREEDY, max_tokens=max_tokens, ignore_eos=ignore_eos))

    def to_proto(self) -> serval_pb2.GenerateRequest:
        return serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=self.prompt), sampling=self.params.to_proto())


@dataclass
class Answer:
    """`finish` is None until the answer has ended well; `error` says how it ended otherwise."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the chosen tokens, where the request asked for them."""
    finish: str | None = None
    cached_tokens: int = 0
    error: grpc.StatusCode | None = None


class GrpcClient:
    """Generate over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = serval_pb2_grpc.ServalStub(channel)

    async def ask(self, ask: Ask) -> Answer:
        """The whole answer. Raises AioRpcError."""
        answer = Answer()
        async for _ in self.stream(ask, answer):
            pass
        return answer

    async def ask_all(self, asks: Sequence[Ask]) -> list[Answer]:
        """All at once."""
        return list(await asyncio.gather(*(self.ask(ask) for ask in asks)))

    async def stream(self, ask: Ask, answer: Answer) -> AsyncIterator[Answer]:
        """Yields `answer` each time it has grown. Closing the iterator cancels the call."""
        call = self._stub.Generate(ask.to_proto(), timeout=ANSWER_TIMEOUT_S)
        try:
            async for message in call:
                answer.token_ids += message.token_ids
                answer.logprobs += [token.chosen.logprob for token in message.logprobs]
                if message.HasField("finish"):
                    answer.finish = FINISH[message.finish.reason]
                    answer.cached_tokens = message.finish.usage.cached_tokens
                yield answer
        finally:
            call.cancel()

    def start(self, ask: Ask) -> "OpenAnswer":
        """Asks in the background."""
        return OpenAnswer(self, ask)


class OpenAnswer:
    """An answer that grows in the background. After `done` it has a finish or an error, never neither."""

    def __init__(self, client: GrpcClient, ask: Ask) -> None:
        self.ask = ask
        self.answer = Answer()
        self.has_begun = asyncio.Event()
        self.done = asyncio.create_task(self._run(client))

    @property
    def has_failed(self) -> bool:
        return self.answer.error is not None

    def cancel(self) -> None:
        self.done.cancel()

    async def _run(self, client: GrpcClient) -> None:
        try:
            async with contextlib.aclosing(client.stream(self.ask, self.answer)) as growing:
                async for _ in growing:
                    self.has_begun.set()
        except grpc.aio.AioRpcError as error:
            self.answer.error = error.code()
        assert (self.answer.finish is None) != (self.answer.error is None), self.answer


@contextlib.asynccontextmanager
async def grpc_client(cluster: RunningCluster) -> AsyncIterator[GrpcClient]:
    async with grpc.aio.insecure_channel(cluster.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield GrpcClient(channel)


@dataclass
class SseAnswer:
    """What a client sees of a text stream. `ended` says how: done, error (an error event, or a status that is none of
    success), or cut (the connection broke)."""

    events: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    ended: str = "cut"
    error: dict[str, Any] | None = None


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """As event streams end them. httpx's own also ends lines at U+0085 and U+2028, which JSON may hold as they are."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


async def read_sse(response: httpx.Response, answer: SseAnswer) -> AsyncIterator[SseAnswer]:
    """Yields `answer` after each event of /v1/completions or /v1/chat/completions."""
    async for line in _lines(response):
        if not line:
            continue
        assert line.startswith("data: "), line
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            answer.ended = "done"
        else:
            event = json.loads(data)
            answer.events.append(event)
            if "error" in event:
                answer.ended, answer.error = "error", event["error"]
            else:
                answer.text += "".join(_text(choice) for choice in event["choices"])
        yield answer


class OpenStream:
    """The same as OpenAnswer for an event stream of /v1/completions."""

    def __init__(self, cluster: RunningCluster, ask: Ask) -> None:
        self.ask = ask
        self.answer = SseAnswer()
        self.has_begun = asyncio.Event()
        self.done = asyncio.create_task(self._run(cluster))

    @property
    def has_failed(self) -> bool:
        return self.answer.ended != "done"

    async def _run(self, cluster: RunningCluster) -> None:
        params = self.ask.params
        body = {"model": cluster.model, "prompt": self.ask.prompt, "stream": True, "max_tokens": params.max_tokens}
        body |= {"temperature": params.temperature, "ignore_eos": params.ignore_eos}
        with contextlib.suppress(httpx.TransportError):
            async with client() as http, http.stream("POST", f"{cluster.url}/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    self.answer.ended, self.answer.error = "error", json.loads(await response.aread())["error"]
                    return
                async for _ in read_sse(response, self.answer):
                    self.has_begun.set()


def _text(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
