"""For tests of the dispatcher: one whose workers are driven by hand, in the words of the protocol."""

import asyncio
from dataclasses import dataclass
from typing import Any

from protocol import cluster_pb2
from protocol.ids import RequestId, draw_incarnation
from protocol.sampling import SamplingParams
from router.accounting import Accounting
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.model import ModelInfo
from router.request import GenerateSpec, Request
from router.tenants.caller import Caller
from router.text.tokenizer import TextTokenizer
from router.workers import Membership, Worker
from telemetry.metrics import Metrics
from tests.integration.router_support import byte_level_tokenizer

MAX_TOKENS = 6
PROMPT = (1, 2, 3)
TOKENIZER = TextTokenizer(byte_level_tokenizer(), None)
MODEL = ModelInfo("m", 512, 300, frozenset((299,)), SamplingParams(), None)
ROLES = {"decode": cluster_pb2.ROLE_DECODE, "prefill": cluster_pb2.ROLE_PREFILL}


def token_at(position: int) -> int:
    return position % 200


@dataclass
class Task:
    """A submit as the worker that got it sees it."""

    worker: Worker
    number: int
    position: int
    left: int


class World:
    """A dispatcher whose workers are driven by hand, in the words of the protocol."""

    def __init__(self, **config: Any) -> None:
        self.metrics = Metrics("router", "router-0")
        self.members = Membership(cluster_pb2.Peer(name="router-0"), "m", self.metrics)
        self.config = RouterConfig(
            **{"model": "m", "model_dir": "/nowhere", "worker_wait_s": 0.0, "worker_return_s": 0.0, **config}
        )
        accounting = Accounting(self.metrics, self.config.cost)
        self.dispatcher = Dispatcher(self.config, MODEL, TOKENIZER, self.members, accounting)
        self.requests: list[Request] = []
        self.tasks: list[Task] = []
        self.workers: list[Worker] = []

    def accept(
        self, tenant: str = "default", sibling_of: Request | None = None, prompt: tuple[int, ...] = PROMPT, **sampling: Any
    ) -> Request:
        spec = GenerateSpec(prompt, SamplingParams(**{"max_tokens": MAX_TOKENS, **sampling}))
        name = RequestId(f"r{len(self.requests)}")
        request = self.dispatcher.accept(name, spec, Caller(tenant), sibling_of=sibling_of)
        self.requests.append(request)
        return request

    def join(self, role: str, name: str, **hello: Any) -> Worker:
        peer = cluster_pb2.Peer(name=name, incarnation=draw_incarnation())
        worker = self.members.join(cluster_pb2.Hello(role=ROLES[role], peer=peer, model="m", **hello), now=0.0)
        self.workers.append(worker)
        return worker

    def hear(self) -> None:
        """Every worker reads its orders."""
        for worker in self.workers:
            while not worker.outbox.empty():
                order = worker.outbox.get_nowait()
                if order.HasField("submit"):
                    submit = order.submit
                    left = submit.sampling.max_tokens - submit.output_tokens
                    self.tasks.append(Task(worker, submit.request, len(submit.prompt), left))
                elif order.HasField("cancel"):
                    self.tasks = [task for task in self.tasks if task.number != order.cancel.request]

    def task_of(self, request: Request) -> Task:
        """The current attempt, as its worker sees it. Raises StopIteration when no worker has it."""
        self.hear()
        return next(task for task in self.tasks if task.worker is request.decode and task.number == request.number)

    def report(self, worker: Worker, **load: Any) -> None:
        self.dispatcher.on_load(worker, cluster_pb2.LoadReport(**load), asyncio.get_running_loop().time())

    def say(self, task: Task, tokens: int, outcome: str | None, *, handed_back: bool = False, **timings: Any) -> None:
        """Without an outcome a prompt's time comes with the token."""
        tokens = min(tokens, task.left)
        ids = [token_at(task.position + index) for index in range(tokens)]
        task.position, task.left = task.position + tokens, task.left - tokens
        ended = None
        if outcome:
            ended = cluster_pb2.Ended(outcome=outcome, timings=cluster_pb2.Timings(**timings), handed_back=handed_back)
        output = cluster_pb2.RequestOutput(request=task.number, token_ids=ids, ended=ended)
        output.prefill_busy_s = 0.0 if outcome else timings.get("prefill_busy_s", 0.0)
        self.dispatcher.on_step(task.worker, cluster_pb2.StepOutput(outputs=[output]))

    def ended_count(self) -> int:
        samples = [sample for metric in self.metrics.registry.collect() for sample in metric.samples]
        return int(sum(sample.value for sample in samples if sample.name == "serval_requests_total"))
