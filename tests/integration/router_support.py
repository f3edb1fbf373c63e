"""For the router's tests: a model folder without weights, a worker that speaks the real RouterLink, a router on free ports."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

import grpc
import grpc.aio
import httpx
import openai
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from protocol import cluster_pb2, cluster_pb2_grpc, serval_pb2
from protocol.ids import draw_incarnation
from protocol.peer_stub import dial
from protocol.tls import TlsIdentity
from router.config import RouterConfig
from router.router import BoundPorts, Router
from telemetry.metrics import Metrics

MODEL = "test-model"
CONTEXT = 512
WAIT_S = 10.0
EOS = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """Every byte is a token, and so are a few words: characters split over tokens, and tokens hold several characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "p"), ("s", "t"), ("st", "op"), ("Ã", "¤")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", EOS)])
    return tokenizer


def write_model_folder(folder: Path, **generation: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS)
    config = {"max_position_embeddings": CONTEXT, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": eos}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos], **generation}))
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "bos_token": "<|im_start|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


Answer = Callable[[cluster_pb2.Submit], Iterable[int]]


def positional_answer(text: str) -> Answer:
    """The token at a position depends on the position alone, as for a greedy model: an answer can go on at another worker."""
    tokens = byte_level_tokenizer().encode(text).ids

    def answer(submit: cluster_pb2.Submit) -> Iterable[int]:
        start = len(submit.prompt)
        end = start + submit.sampling.max_tokens - submit.output_tokens
        return [tokens[position % len(tokens)] for position in range(start, end)]

    return answer


class FakeWorker:
    """Joins a router and answers submits with `answer`'s tokens, one step message each; without `answer` the test speaks.

    `pause` is awaited between steps. `hold_after` tokens it goes silent for that request.
    """

    def __init__(
        self,
        router_port: int,
        role: str = "decode",
        name: str | None = None,
        answer: Answer | None = None,
        *,
        incarnation: int | None = None,
        model: str = MODEL,
        fingerprint: str = "layout-1",
        max_model_len: int = CONTEXT,
        kv_blocks: int = 100,
        max_sequences: int = 0,
        hold_after: int | None = None,
        heartbeat_s: float = 0.05,
        tls: TlsIdentity | None = None,
    ) -> None:
        self.name = name or f"{role}-0"
        self.incarnation = incarnation or draw_incarnation()
        self.answer = answer
        self.hold_after = hold_after
        self.heartbeat_s = heartbeat_s
        self.load = cluster_pb2.LoadReport(kv_blocks_total=100)
        self.submits: list[cluster_pb2.Submit] = []
        self.cancelled: list[int] = []
        self.new_submits: asyncio.Queue[cluster_pb2.Submit] = asyncio.Queue()
        self.new_cancels: asyncio.Queue[int] = asyncio.Queue()
        self.status: grpc.StatusCode | None = None
        self.details = ""
        roles = {"decode": cluster_pb2.ROLE_DECODE, "prefill": cluster_pb2.ROLE_PREFILL}
        self._hello = cluster_pb2.Hello(
            role=roles[role],
            peer=cluster_pb2.Peer(name=self.name, incarnation=self.incarnation, address="127.0.0.1:1"),
            model=model,
            layout_fingerprint=fingerprint,
            block_size=16,
            kv_blocks=kv_blocks,
            max_sequences=max_sequences,
            max_model_len=max_model_len,
            metrics_address="127.0.0.1:2",
        )
        self._outbox: asyncio.Queue[cluster_pb2.FromWorker] = asyncio.Queue()
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = dial(f"127.0.0.1:{router_port}", "router", tls, options)
        self._tasks: set[asyncio.Task[None]] = set()
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> "FakeWorker":
        """Returns once welcomed; raises AioRpcError when refused."""
        self._outbox.put_nowait(cluster_pb2.FromWorker(hello=self._hello))
        self._call = cluster_pb2_grpc.RouterLinkStub(self._channel).Connect(self._requests())
        self._spawn(self._read())
        await asyncio.wait_for(asyncio.shield(self._welcomed), WAIT_S)
        self._spawn(self._beat())
        return self

    async def __aenter__(self) -> "FakeWorker":
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """The stream breaks without a word, as when a process is killed."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def next_submit(self) -> cluster_pb2.Submit:
        return await asyncio.wait_for(self.new_submits.get(), WAIT_S)

    async def next_cancel(self) -> int:
        return await asyncio.wait_for(self.new_cancels.get(), WAIT_S)

    def say(self, *outputs: cluster_pb2.RequestOutput) -> None:
        self._outbox.put_nowait(cluster_pb2.FromWorker(step=cluster_pb2.StepOutput(outputs=outputs)))

    def say_tokens(self, request: int, tokens: Sequence[int]) -> None:
        self.say(cluster_pb2.RequestOutput(request=request, token_ids=tokens))

    def say_ended(self, request: int, outcome: str = "stop", message: str = "", **ended: object) -> None:
        end = cluster_pb2.Ended(outcome=outcome, message=message, **ended)  # type: ignore[arg-type]
        self.say(cluster_pb2.RequestOutput(request=request, ended=end))

    def say_draining(self) -> None:
        self._outbox.put_nowait(cluster_pb2.FromWorker(draining=cluster_pb2.Draining()))

    async def wait_closed(self) -> None:
        """Returns once the router has ended the stream; `status` and `details` say how."""
        self.status = await asyncio.wait_for(self._call.code(), WAIT_S)
        self.details = await self._call.details()

    async def _requests(self) -> AsyncIterator[cluster_pb2.FromWorker]:
        while True:
            yield await self._outbox.get()

    async def _beat(self) -> None:
        while True:
            self._outbox.put_nowait(cluster_pb2.FromWorker(load=self.load))
            await asyncio.sleep(self.heartbeat_s)

    async def _read(self) -> None:
        try:
            async for order in self._call:
                kind = order.WhichOneof("kind")
                if kind == "welcome":
                    self._welcomed.set_result(None)
                elif kind == "submit":
                    self.submits.append(order.submit)
                    self.new_submits.put_nowait(order.submit)
                    if self.answer is not None:
                        self._spawn(self._run(order.submit, self.answer))
                else:
                    self.cancelled.append(order.cancel.request)
                    self.new_cancels.put_nowait(order.cancel.request)
        except grpc.aio.AioRpcError as error:
            if not self._welcomed.done():
                self._welcomed.set_exception(error)

    async def _run(self, submit: cluster_pb2.Submit, answer: Answer) -> None:
        eos = byte_level_tokenizer().token_to_id(EOS)
        outcome = "length"
        for count, token in enumerate(answer(submit)):
            if submit.request in self.cancelled:
                self.say_ended(submit.request, "cancelled")
                return
            if count == self.hold_after:
                return
            self.say(_output(submit, token, is_first=count == 0))
            if token == eos and not submit.sampling.ignore_eos:
                outcome = "stop"
                break
            await asyncio.sleep(0)
        timings = cluster_pb2.Timings(queue_s=0.001, prefill_s=0.002, transfer_s=0.001, decode_s=0.01, transfer_bytes=1000)
        self.say_ended(submit.request, outcome, cached_tokens=1, timings=timings)

    def _spawn(self, coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _output(submit: cluster_pb2.Submit, token: int, is_first: bool = False) -> cluster_pb2.RequestOutput:
    logprobs = []
    if submit.sampling.HasField("logprobs"):
        top = [serval_pb2.TokenLogprob(token_id=(token + i) % 256, logprob=-0.5 - i) for i in range(submit.sampling.logprobs)]
        logprobs = [serval_pb2.TokenLogprobs(chosen=serval_pb2.TokenLogprob(token_id=token, logprob=-0.5), top=top)]
    prompt = _prompt_logprobs(submit) if is_first and submit.sampling.HasField("prompt_logprobs") else []
    return cluster_pb2.RequestOutput(request=submit.request, token_ids=[token], logprobs=logprobs, prompt_logprobs=prompt)


def _prompt_logprobs(submit: cluster_pb2.Submit) -> list[serval_pb2.TokenLogprobs]:
    """Each token's is minus its position; the likeliest of n beside it is its successor."""
    count = submit.sampling.prompt_logprobs
    return [
        serval_pb2.TokenLogprobs(
            chosen=serval_pb2.TokenLogprob(token_id=token, logprob=-position),
            top=[
                serval_pb2.TokenLogprob(token_id=(token + i + 1) % 256, logprob=-0.25 - i)
                for i in range(count if position else 0)
            ],
        )
        for position, token in enumerate(submit.prompt)
    ]


class Cluster:
    """A started router and clients for it."""

    def __init__(self, router: Router, ports: BoundPorts, metrics: Metrics) -> None:
        self.router, self.ports, self.metrics = router, ports, metrics
        self.url = f"http://127.0.0.1:{ports.http}"
        self.http = httpx.AsyncClient(base_url=self.url, timeout=WAIT_S)
        self.openai = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}")

    def worker(self, role: str = "decode", name: str | None = None, answer: Answer | None = None, **more: object) -> FakeWorker:
        return FakeWorker(self.ports.link, role, name, answer, **more)  # type: ignore[arg-type]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition that the loop brings about, with a deadline."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 - the conditions are other objects' state
                await asyncio.sleep(0.005)

    def outcomes(self) -> dict[str, int]:
        """Requests ended, by outcome."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "serval_requests_total" and sample.value
        }

    async def close(self) -> None:
        await self.http.aclose()
        await self.openai.close()
        await self.channel.close()
        await self.router.stop(1)


@contextlib.asynccontextmanager
async def cluster(folder: Path, **config: object) -> AsyncIterator[Cluster]:
    metrics = Metrics("router", "router-0")
    settings = {
        "model": MODEL,
        "model_dir": folder,
        "http_port": 0,
        "grpc_port": 0,
        "link_port": 0,
        "worker_wait_s": 0.2,
        "worker_return_s": 0.2,
        **config,
    }
    router = Router(RouterConfig(**settings), metrics)  # type: ignore[arg-type]
    running = Cluster(router, await router.start(), metrics)
    try:
        yield running
    finally:
        await asyncio.wait_for(running.close(), WAIT_S)
