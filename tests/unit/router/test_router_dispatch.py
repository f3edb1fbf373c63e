"""The dispatcher under any order of events: one outcome per accepted request, nothing counted anywhere when all have ended."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import cluster_pb2
from protocol.errors import Overloaded, Unavailable
from protocol.ids import draw_incarnation
from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from router.accounting import Accounting
from router.answers import Answers
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.model import ModelInfo
from router.request import GenerateSpec, Request
from router.tokenizer import TextTokenizer
from router.workers import Membership, Worker
from telemetry.cost import CostConfig
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
        settings_ = {"model": "m", "model_dir": "/nowhere", "worker_wait_s": 0.0, **config}
        accounting = Accounting(self.metrics, CostConfig())
        self.dispatcher = Dispatcher(RouterConfig(**settings_), MODEL, TOKENIZER, self.members, accounting)
        self.requests: list[Request] = []
        self.tasks: list[Task] = []
        self.workers: list[Worker] = []

    def accept(self, **sampling: Any) -> Request:
        spec = GenerateSpec(PROMPT, SamplingParams(**{"max_tokens": MAX_TOKENS, **sampling}))
        request = self.dispatcher.accept(f"r{len(self.requests)}", spec)
        self.requests.append(request)
        return request

    def join(self, role: str, name: str) -> Worker:
        peer = cluster_pb2.Peer(name=name, incarnation=draw_incarnation())
        worker = self.members.join(cluster_pb2.Hello(role=ROLES[role], peer=peer, model="m"), now=0.0)
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

    def say(self, task: Task, tokens: int, outcome: str | None) -> None:
        tokens = min(tokens, task.left)
        ids = [token_at(task.position + index) for index in range(tokens)]
        task.position, task.left = task.position + tokens, task.left - tokens
        ended = cluster_pb2.Ended(outcome=outcome) if outcome else None
        output = cluster_pb2.RequestOutput(request=task.number, token_ids=ids, ended=ended)
        self.dispatcher.on_step(task.worker, cluster_pb2.StepOutput(outputs=[output]))

    def ended_count(self) -> int:
        samples = [sample for metric in self.metrics.registry.collect() for sample in metric.samples]
        return int(sum(sample.value for sample in samples if sample.name == "serval_requests_total"))


Operation = tuple[str, int, int]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["accept", "accept", "tokens", "tokens", "lose", "join", "finish", "fail", "abandon", "deadline", "wait", "drain"]
        ),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=60,
)  # fmt: skip
FAILURES = ["overloaded", "unavailable", "prefill_failed", "transfer_failed", "internal", "gibberish", "deadline", "invalid"]


async def perform(world: World, operation: Operation) -> None:
    what, a, b = operation
    if what == "accept":
        world.accept()
    elif what == "join":
        world.join("prefill" if a % 3 == 0 else "decode", f"w{b % 3}")
    elif what == "wait":
        await asyncio.sleep(0.001)
    elif what in ("lose", "drain") and world.workers:
        worker = world.workers[a % len(world.workers)]
        if what == "lose":
            world.members.leave(worker, "it was killed")
        else:
            worker.is_draining = True
    elif what in ("abandon", "deadline") and world.requests:
        request = world.requests[a % len(world.requests)]
        if what == "abandon":
            world.dispatcher.abandon(request)
        else:
            world.dispatcher._on_deadline(request)
    elif what in ("tokens", "finish", "fail") and world.tasks:
        task = world.tasks[a % len(world.tasks)]
        outcome = {"tokens": None, "finish": "length", "fail": FAILURES[b]}[what]
        world.say(task, MAX_TOKENS if what == "finish" else b % 4, outcome)
        if outcome:
            world.tasks.remove(task)
    if b:  # otherwise the orders are still on their way
        world.hear()


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_every_accepted_request_ends_exactly_once_and_leaves_nothing(operations: list[Operation]) -> None:
    async def scenario() -> None:
        world = World()
        for name in ("w0", "w1"):
            world.join("decode", name)
        for operation in operations:
            await perform(world, operation)
            for request in world.requests:
                whole = [token_at(len(PROMPT) + index) for index in range(MAX_TOKENS)]
                assert request.output == whole[: len(request.output)], "a token was lost, repeated or out of order"
        world.dispatcher.end_all("over")
        assert [request for request in world.requests if request.end is None] == []
        assert world.ended_count() == len(world.requests)
        assert world.dispatcher.open_requests == 0
        await asyncio.wait_for(world.dispatcher.wait_idle(), 1)
        for worker in world.workers:
            assert (worker.in_flight, worker.in_flight_tokens, worker.open_requests) == (0, 0, {})
        assert world.metrics.value("serval_num_requests_running") == 0
        assert world.metrics.value("serval_num_requests_waiting") == 0
        for request in world.requests:
            received = [token for delta in await Answers([request]).whole() for token in delta.token_ids]
            assert received == request.output
            assert request.end is not None
            if request.end.outcome is Outcome.LENGTH:
                assert len(request.output) == MAX_TOKENS

    asyncio.run(scenario())


async def test_what_a_slow_client_has_not_taken_comes_in_one_piece() -> None:
    world = World()
    world.join("decode", "d")
    request = world.accept()
    world.hear()
    world.say(world.tasks[0], 1, None)
    pieces = Answers([request]).pieces()
    assert len((await anext(pieces))[0].delta.token_ids) == 1
    for _ in range(3):
        world.say(world.tasks[0], 1, None)
    assert len((await anext(pieces))[0].delta.token_ids) == 3


async def test_a_retry_is_counted_against_max_retries_not_for_ever() -> None:
    world = World(max_retries=2)
    request = world.accept()
    for attempt in range(3):
        world.members.leave(world.join("decode", f"d{attempt}"), "killed")
    assert request.end is not None
    assert (request.end.outcome, request.retries) == (Outcome.UNAVAILABLE, 2)


async def test_the_word_that_an_answer_ended_may_be_lost_with_its_worker() -> None:
    world = World()
    worker = world.join("decode", "d")
    request = world.accept()
    world.hear()
    world.say(world.tasks[0], MAX_TOKENS, None)
    world.members.leave(worker, "killed")
    assert request.end is not None
    assert request.end.outcome is Outcome.LENGTH


async def test_a_bug_in_one_answer_ends_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.join("decode", "d")
    broken, other = world.accept(), world.accept()
    world.hear()

    def explode(*_: object) -> bool:
        raise ValueError("a bug")

    monkeypatch.setattr(broken, "add", explode)
    for task in list(world.tasks):
        world.say(task, MAX_TOKENS, "length")
    assert broken.end is not None and other.end is not None
    assert (broken.end.outcome, other.end.outcome) == (Outcome.INTERNAL, Outcome.LENGTH)


@pytest.mark.parametrize(
    ("config", "prepare", "error"),
    [
        ({"max_open_requests": 1}, lambda world: world.accept(), Overloaded),
        ({"max_waiting": 1}, lambda world: world.accept(), Overloaded),
        ({}, lambda world: setattr(world.dispatcher, "is_draining", True), Unavailable),
    ],
)
async def test_refusals_accept_nothing(config: dict[str, Any], prepare: Callable[[World], Any], error: type[Exception]) -> None:
    world = World(**config)
    prepare(world)
    before = world.dispatcher.open_requests
    with pytest.raises(error):
        world.accept()
    assert world.dispatcher.open_requests == before
    world.dispatcher.end_all("over")
