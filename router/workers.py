"""The cluster as this router sees it: the set of live worker streams."""

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import cached_property

from protocol import cluster_pb2
from protocol.errors import ServalError
from router.request import Request
from router.worker_time import WorkerTime
from telemetry.metrics import Metrics
from telemetry.recent import RecentLine

DECODE = cluster_pb2.ROLE_DECODE
PREFILL = cluster_pb2.ROLE_PREFILL
POOL_NAMES = {DECODE: "decode", PREFILL: "prefill"}

SLOWER_PER_REQUEST = 1 / 32
"""How much longer a step takes with one more answer in the batch, while that was not measured: a batch is cheap, not free."""


class RefusedWorker(ServalError):
    """This worker cannot join this cluster; the message says why."""


@dataclass(eq=False)
class Worker:
    """One live stream. `in_flight` counts this router's requests here: open ones (decode), prompts on their way (prefill)."""

    hello: cluster_pb2.Hello
    joined_at: float
    heard_at: float
    progressed_at: float
    load: cluster_pb2.LoadReport = field(default_factory=cluster_pb2.LoadReport)
    is_draining: bool = False
    has_died: bool = False
    """It was lost in disorder: its stream broke, or it stood still. Set when it has left."""
    open_requests: dict[int, Request] = field(default_factory=dict)
    in_flight: int = 0
    in_flight_tokens: int = 0
    reported_at: float = 0.0
    in_flight_at_report: int = 0
    sent_since_report: int = 0
    sent_tokens_since_report: int = 0
    """Requests, and their prompt tokens, that the last report cannot have counted."""
    computing_tokens: int = 0
    """Prompt tokens that this router sent here to be computed, as far as it knows uncached, and that have brought no token."""
    step_times: RecentLine = field(default_factory=RecentLine)
    """The time between two tokens by the number of running requests, from its reports."""
    last_pick: int = 0
    outbox: asyncio.Queue[cluster_pb2.FromRouter] = field(default_factory=asyncio.Queue)
    end_reason: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def name(self) -> str:
        return self.hello.peer.name

    @property
    def incarnation(self) -> int:
        return self.hello.peer.incarnation

    @property
    def pool(self) -> str:
        return POOL_NAMES[self.hello.role]

    def takes(self, total_tokens: int, avoided: Set[int]) -> bool:
        """It takes new work, and can hold a request of that length (prompt and longest answer) once it has room. `avoided`:
        incarnations that must not get it."""
        is_long = self.max_tokens is not None and total_tokens > self.max_tokens
        return not (self.is_draining or is_long or self.incarnation in avoided)

    @cached_property
    def max_tokens(self) -> int | None:
        """The longest request, prompt and answer, that it can hold; None where it did not say."""
        pool = self.hello.kv_blocks * self.hello.block_size
        return min((limit for limit in (self.hello.max_model_len, pool) if limit), default=None)

    @property
    def load_elsewhere(self) -> int:
        """Requests that other routers have there, as of the last report."""
        return max(0, self.load.running + self.load.waiting - self.in_flight_at_report)

    @property
    def requests(self) -> int:
        """Everybody's requests there."""
        return self.in_flight + self.load_elsewhere

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens to be computed there first: this router's own, and of what the last report counted the share that is
        other routers' by requests. (By tokens it cannot be told: a prompt that waits is reported whole, for what of it is cached
        shows when its turn comes.)"""
        reported = self.load.running + self.load.waiting
        elsewhere = self.load.queued_tokens * self.load_elsewhere // reported if reported else 0
        return self.computing_tokens + elsewhere

    def predicted_itl_s(self, usual_s: float) -> float:
        """The time between two tokens of one answer with one more request in the batch. `usual_s`: for a worker that has
        answered nothing lately."""
        if not self.step_times.weight:
            return usual_s * (1 + SLOWER_PER_REQUEST * self.requests)
        assumed_s = self.step_times.mean_y * SLOWER_PER_REQUEST
        fixed_s, per_request_s = self.step_times.fit(assumed_slope=assumed_s, spread=0.5)
        return fixed_s + per_request_s * (self.requests + 1)

    def has_room_for(self, prompt_tokens: int) -> bool:
        """A decode worker could begin at once. What it does not say counts as room."""
        is_full = bool(self.hello.max_sequences) and self.requests >= self.hello.max_sequences
        return not is_full and self.has_blocks_for(prompt_tokens)

    def has_blocks_for(self, prompt_tokens: int) -> bool:
        """Nobody waits for KV blocks there, and enough are free."""
        if self.load.waiting_for_blocks:
            return False
        if not self.load.kv_blocks_total or not self.hello.block_size:
            return True
        free = self.load.kv_blocks_total - self.load.kv_blocks_used
        return prompt_tokens + 1 + self.sent_tokens_since_report <= free * self.hello.block_size

    def __repr__(self) -> str:
        return f"<Worker {self.name}/{self.incarnation:x} in_flight={self.in_flight} draining={self.is_draining}>"

    def take_report(self, load: cluster_pb2.LoadReport, now: float) -> None:
        if load.steps != self.load.steps or load.running == 0:
            self.progressed_at = now
        self.load = load
        self.reported_at = now
        self.in_flight_at_report = self.in_flight
        if not load.step_s:
            self.step_times = RecentLine()
        elif load.running:
            self.step_times.add(load.running, load.step_s)
        self.sent_since_report = self.sent_tokens_since_report = 0

    def end_stream(self, reason: str) -> None:
        """Asks the stream's handler to close it; idempotent."""
        if not self.end_reason.done():
            self.end_reason.set_result(reason)


class Membership:
    """Live workers by role and name. `on_joined` is called after each join, `on_lost` with a worker whose stream ended."""

    def __init__(self, me: cluster_pb2.Peer, model: str, metrics: Metrics) -> None:
        self._me = me
        self._model = model
        self._metrics = metrics
        self._workers: dict[tuple[int, str], Worker] = {}
        self.on_joined: Callable[[], None] = lambda: None
        self.on_lost: Callable[[Worker, str], None] = lambda worker, reason: None
        self.worker_time = WorkerTime()
        for pool in POOL_NAMES.values():
            metrics.workers.of(pool=pool).set(0)

    @property
    def all(self) -> list[Worker]:
        """Every live worker, in the order of joining."""
        return list(self._workers.values())

    def pool(self, role: cluster_pb2.Role.ValueType) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.hello.role == role]

    @property
    def block_size(self) -> int:
        """Tokens of a KV block; the same at all workers (it is part of their layout). 0 while there is none."""
        return next((worker.hello.block_size for worker in self._workers.values()), 0)

    def context_limit(self, model_limit: int) -> int:
        """Tokens, prompt and answer, that some live decode worker can hold; the model's own limit while there is none."""
        limits = [worker.max_tokens or model_limit for worker in self.pool(DECODE)]
        return min(model_limit, max(limits, default=model_limit))

    def join(self, hello: cluster_pb2.Hello, now: float) -> Worker:
        """Adds the worker, replacing at once an older stream of the same name. Raises RefusedWorker."""
        key = (hello.role, hello.peer.name)
        self._check(hello, [worker for other, worker in self._workers.items() if other != key])
        if (old := self._workers.get(key)) is not None:
            same = old.incarnation == hello.peer.incarnation
            why = "it opened a new stream" if same else "a restarted worker took its place"
            self.leave(old, why, has_died=not same)
        worker = Worker(hello, joined_at=now, heard_at=now, progressed_at=now)
        worker.outbox.put_nowait(cluster_pb2.FromRouter(welcome=cluster_pb2.Welcome(router=self._me)))
        self._workers[key] = worker
        self._count(worker.pool, hello.role)
        self.on_joined()
        return worker

    def leave(self, worker: Worker, reason: str, *, has_died: bool = True) -> None:
        """Removes the worker and gives up its requests; idempotent. `has_died`: not in order."""
        key = (worker.hello.role, worker.name)
        if self._workers.get(key) is not worker:
            return
        del self._workers[key]
        worker.has_died = has_died and not worker.is_draining
        self._count(worker.pool, worker.hello.role)
        if not worker.is_draining:
            self._metrics.worker_losses.of(pool=worker.pool).inc()
        worker.end_stream(reason)
        self.on_lost(worker, reason)

    def close(self, reason: str) -> None:
        """Ends every stream: the router stops. That is no worker's loss."""
        for worker in self.all:
            worker.is_draining = True
            self.leave(worker, reason)

    def overdue(self, now: float, silence_s: float, stall_s: float) -> list[tuple[Worker, str, bool]]:
        """Workers to give up, why, and whether that is a death: silent ones, which may as well be this router's own network, and
        decode workers whose engine stands still under load."""
        late: list[tuple[Worker, str, bool]] = []
        for worker in self._workers.values():
            if now - worker.heard_at > silence_s:
                late.append((worker, f"it was silent for {silence_s:g} s", False))
            elif worker.hello.role == DECODE and now - worker.progressed_at > stall_s:
                late.append((worker, f"its engine made no step for {stall_s:g} s", True))
        return late

    def _check(self, hello: cluster_pb2.Hello, others: list[Worker]) -> None:
        if hello.role not in POOL_NAMES:
            raise RefusedWorker(f"role {hello.role} has no pool here")
        if not hello.peer.name or not hello.peer.incarnation:
            raise RefusedWorker("a worker must say its name and incarnation")
        if hello.model != self._model:
            raise RefusedWorker(f"this cluster serves {self._model!r}, not {hello.model!r}")
        for other in others:
            if other.hello.layout_fingerprint != hello.layout_fingerprint:
                raise RefusedWorker(
                    f"KV layout {hello.layout_fingerprint!r} differs from {other.name}'s {other.hello.layout_fingerprint!r}"
                )

    def _count(self, pool: str, role: cluster_pb2.Role.ValueType) -> None:
        workers = len(self.pool(role))
        self._metrics.workers.of(pool=pool).set(workers)
        self.worker_time.count(pool, workers)
