"""The life of every accepted request: admission, placement, tokens, loss of a worker, one end.

Everything here is synchronous and runs on the event loop; its only effects are messages put into workers' outboxes, timers
and a woken front. So no state can change between a decision and its effect.
"""

import asyncio
import itertools
import logging
from dataclasses import replace

from protocol import cluster_pb2
from protocol.errors import Unavailable
from protocol.ids import RequestId
from protocol.lifecycle import Event, State
from protocol.outcomes import Outcome
from router.accounting import Accounting, Spent
from router.capacity import Capacity
from router.config import RouterConfig
from router.losses import POISON, Verdict, judge
from router.model import ModelInfo
from router.open_requests import OpenRequests
from router.placement.attempts import Attempts
from router.pool_load import PoolLoads
from router.request import End, GenerateSpec, Request, Timeline
from router.returns import MOVED, Returns
from router.shedding import ShedReason
from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.tenant import Tenants
from router.text.answer_text import AnswerText
from router.text.tokenizer import TextTokenizer
from router.turns import Turns
from router.waiting_line import GONE, WaitingLine
from router.workers import DECODE, Membership, Worker
from telemetry.tracing import NO_CONTEXT, TraceContext

logger = logging.getLogger(__name__)


class Dispatcher:
    """Owns every open request. A request leaves it exactly once, through `_end`."""

    def __init__(
        self, config: RouterConfig, model: ModelInfo, tokenizer: TextTokenizer, members: Membership, accounting: Accounting
    ) -> None:
        self._config = config
        self._model = model
        self._tokenizer = tokenizer
        self._accounting = accounting
        self.tenants = Tenants(config.tenants, config.expected_answer_tokens)
        self._attempts = Attempts(config, members, accounting)
        self.turns = Turns()
        """The line of all who write to clients."""
        self._line = WaitingLine(config, accounting, self._attempts, self._end)
        self._open = OpenRequests(accounting)
        self._capacity = Capacity(config, self._open, self._line)
        self._returns = Returns(self._line, accounting)
        self.loads = PoolLoads(members, self._line, self._attempts, accounting)
        self.is_draining = False
        self._attempts.on_room = self._line.note_room
        members.on_joined = self._line.on_worker_joined
        members.on_lost = self._on_worker_lost

    @property
    def open_requests(self) -> int:
        return len(self._open)

    @property
    def waiting_requests(self) -> int:
        """Those without a token yet."""
        return self._open.waiting

    async def wait_idle(self) -> None:
        """Returns when no request is open."""
        await self._open.wait_empty()

    # ---- what fronts ask for

    def check_capacity(self, caller: Caller = ANONYMOUS, timeout_s: float | None = None) -> None:
        """Raises RateLimited, Overloaded or Unavailable when no request of this caller can be accepted now, and changes nothing.
        Fronts ask before they parse or tokenise: a flood that is refused costs little. `timeout_s`: the client's own deadline."""
        self._check_draining()
        tenant = self.tenants.of(caller)
        tenant.check(asyncio.get_running_loop().time())
        self._capacity.check(tenant.share, self._limit_s(timeout_s))

    def accept(
        self,
        request_id: RequestId,
        spec: GenerateSpec,
        caller: Caller = ANONYMOUS,
        timeout_s: float | None = None,
        trace: TraceContext = NO_CONTEXT,
        sibling_of: Request | None = None,
    ) -> Request:
        """Takes the request, places it at once if it can, and owns it from now on. Raises as `check_capacity`. The workers' spans
        go below `trace`.

        `sibling_of`: an accepted request of the same caller with the same prompt, to which this is another answer. It is sent
        when the first one's decode worker has the prompt, and if possible to that one, which then has nothing to compute.
        """
        self._check_draining()
        now = asyncio.get_running_loop().time()
        tenant = self.tenants.of(caller)
        limit_s, max_tokens = self._limit_s(timeout_s), spec.sampling.max_tokens
        tokens = len(spec.prompt) + max_tokens
        displaced = self._capacity.check(tenant.share, limit_s, tokens, is_sibling=sibling_of is not None)
        charge = tenant.admit(len(spec.prompt), max_tokens, now, is_sibling=sibling_of is not None)
        if displaced is not None:
            message = "more waits than the router holds (max_waiting), and this tenant has the most there; a retry can help"
            self._end(displaced, End(Outcome.OVERLOADED, message, retry_after_s=self._line.retry_after_s))
            self._accounting.shed(ShedReason.DISPLACED, displaced.charge.tenant.name)
        text = AnswerText(self._tokenizer, spec.stop, spec.sampling.min_tokens, spec.shown_tokens)
        request = Request(request_id, spec, text, Timeline(arrived=now, deadline=now + limit_s), charge, caller)
        request.trace = trace
        request.end_tokens = spec.end_tokens(self._model.eos_token_ids)
        request.sibling_of = sibling_of
        self._open.add(request)
        timer = asyncio.get_running_loop().call_at(request.timeline.deadline, self._on_deadline, request)
        request.timers.append(timer)
        if sibling_of is not None and not sibling_of.has_prompt_at_decode:
            sibling_of.siblings.append(request)
        else:
            self._line.enter(request)
        self._line.pump()
        return request

    def abandon(self, request: Request, outcome: Outcome = Outcome.CANCELLED) -> None:
        """Nobody reads the answer any more. Does nothing to a request that has ended."""
        self._end(request, End(outcome, "nobody reads the answer any more"))
        self._line.pump()

    def end_all(self, message: str) -> None:
        """Ends every open request as unavailable: the router stops."""
        for request in self._open:
            self._end(request, End(Outcome.UNAVAILABLE, message))
        self._line.pump()

    def _check_draining(self) -> None:
        if self.is_draining:
            raise Unavailable("this router is shutting down; a retry elsewhere can help")

    def _limit_s(self, timeout_s: float | None) -> float:
        """How long a request may take."""
        return min(timeout_s or self._config.request_timeout_s, self._config.request_timeout_s)

    # ---- what workers say

    def on_step(self, worker: Worker, step: cluster_pb2.StepOutput) -> None:
        """One engine step's tokens. Those of requests that ended here already are dropped: the worker has not heard yet."""
        now = asyncio.get_running_loop().time()
        for output in step.outputs:
            request = worker.open_requests.get(output.request)
            if request is None:
                if output.HasField("ended"):
                    self._attempts.on_late_end(worker, output.request, output.ended)
                continue
            try:
                self._on_output(request, output, now)
            except Exception:
                logger.exception("request %s", request.request_id)
                self._end(request, End(Outcome.INTERNAL, "the router failed to handle the answer"))
        self._line.pump()

    def on_load(self, worker: Worker, load: cluster_pb2.LoadReport, now: float) -> None:
        """A worker's periodic report."""
        self._attempts.on_load(worker, load, now)
        self._line.note_room()
        self._line.pump()

    def on_cache(self, worker: Worker, change: cluster_pb2.CacheChange) -> None:
        """What a prompt may find in a worker's prefix cache has changed."""
        self._attempts.on_cache(worker, change)

    def _on_output(self, request: Request, output: cluster_pb2.RequestOutput, now: float) -> None:
        token_ids = output.token_ids[:]  # a plain list: the message's own is slow to read
        if output.prefill_busy_s:
            self._accounting.prefill_told(request, output.prefill_busy_s)
        stopped = bool(token_ids) and self._add_tokens(request, output, token_ids, now)
        if token_ids and request.suspicion.deaths:
            self._returns.on_token(request)
        if output.HasField("ended"):
            self._on_ended(request, output.ended, stopped)
        elif stopped:
            self._end(request, End(Outcome.STOP))

    def _add_tokens(self, request: Request, output: cluster_pb2.RequestOutput, token_ids: list[int], now: float) -> bool:
        """True when a stop string is complete; tokens after it are dropped."""
        if request.lifecycle.state is not State.STREAMING:
            self._open.advance(request, Event.TOKENS)
            self._attempts.leave_prefill(request)
            request.prompt_logprobs = request.prompt_logprobs or output.prompt_logprobs
        self._accounting.tokens(request, len(token_ids), now)
        if not request.is_read_by_token:
            request.add_all(token_ids)
        else:
            logprobs = output.logprobs if request.spec.sampling.logprobs is not None else ()
            for token_id, token_logprobs in itertools.zip_longest(token_ids, logprobs):
                if request.add(token_id, token_logprobs):
                    return True
        if request.siblings and request.has_prompt_at_decode:
            self._release_siblings(request)
        return False

    def _on_ended(self, request: Request, ended: cluster_pb2.Ended, stopped: bool) -> None:
        self._attempts.leave(request)
        request.cached_tokens = min(ended.cached_tokens, len(request.spec.prompt))
        outcome = Outcome.STOP if stopped else Outcome.of(ended.outcome)
        is_moved = ended.handed_back and not stopped
        goes_on = is_moved or self._can_go_on(request, outcome)
        spent = Spent.RETRIED if goes_on else Spent.SERVED if outcome.is_success else Spent.FAILED
        self._accounting.attempt_ended(request, ended.timings, spent)
        if goes_on:
            self._go_on(request, MOVED if is_moved else str(outcome))
        else:
            retry_after_s = self._line.retry_after_s if outcome is Outcome.OVERLOADED else None
            self._end(request, End(outcome, ended.message, retry_after_s=retry_after_s))

    # ---- losses and ends

    def _on_worker_lost(self, worker: Worker, reason: str) -> None:
        self._attempts.on_worker_lost(worker)
        self._line.note_room()
        requests = self._attempts.held_by(worker)
        logger.log(
            logging.INFO if worker.is_draining else logging.WARNING,
            "%s %s left: %s; it had %d open requests", worker.pool, worker.name, reason, len(requests),
        )  # fmt: skip
        verdicts = judge([request.suspicion for request in requests]) if worker.has_died else [Verdict.GO_ON] * len(requests)
        for request, verdict in zip(requests, verdicts, strict=True):
            try:
                if verdict is Verdict.POISON:
                    logger.error("request %s: %s", request.request_id, POISON)
                    self._end(request, End(Outcome.POISON, POISON))
                elif worker.hello.role == DECODE:  # a prefill worker's loss is made good by the decode worker
                    self._attempts.leave(request)
                    if self._can_go_on(request, Outcome.UNAVAILABLE):
                        self._go_on(request, "worker_lost", is_apart=verdict is Verdict.APART)
                    else:
                        self._end(request, End(Outcome.UNAVAILABLE, GONE))
            except Exception:
                logger.exception("request %s", request.request_id)
                self._end(request, End(Outcome.INTERNAL, "the router failed to go on with the answer"))
        self._line.pump()

    def _can_go_on(self, request: Request, outcome: Outcome) -> bool:
        """Whether another worker may help. A worker that said no is not asked again; a lost one is welcome when it is back."""
        if not outcome.is_retryable or request.retries >= self._config.max_retries:
            return False
        if outcome in (Outcome.PREFILL_FAILED, Outcome.TRANSFER_FAILED) and request.prefill is not None:
            request.avoided.add(request.prefill.incarnation)
        elif outcome is Outcome.OVERLOADED and request.decode is not None:
            request.avoided.add(request.decode.incarnation)
            return any(worker.takes(request.total_tokens, request.avoided) for worker in self._attempts.decode_workers)
        return True

    def _go_on(self, request: Request, why: str, *, is_apart: bool = False) -> None:
        """From the tokens that the client has already. Draws are keyed by (seed, position), and the worker is told which tokens
        are answer, so the answer is the one it would have been. `is_apart`: when no other suspect is being tried."""
        self._open.advance(request, Event.WORKER_LOST)
        if len(request.output) >= request.spec.sampling.max_tokens:  # only the word that it ended was lost
            self._end(request, End(Outcome.LENGTH))
        else:
            self._returns.enter(request, why, is_apart=is_apart)

    def _on_deadline(self, request: Request) -> None:
        self._end(request, End(Outcome.DEADLINE, "the request's deadline passed"))
        self._line.pump()

    def _end(self, request: Request, end: End) -> None:
        """The only way out; whatever comes later for this request finds it gone."""
        if request.lifecycle.has_ended:
            return
        self._open.advance(request, Event.END)
        self._attempts.cancel(request, Spent.SERVED if end.outcome.is_success else Spent.FAILED)
        self._line.leave(request)
        self._returns.leave(request)
        for timer in request.timers:
            timer.cancel()
        if end.outcome.is_success:
            end = self._with_rest(request, end)
        request.timeline.ended = now = asyncio.get_running_loop().time()
        was_computed = bool(request.output) or not (end.outcome.is_retryable or request.timeline.submitted is None)
        request.charge.settle(len(request.output), was_computed, end.outcome.is_success, now)
        self._accounting.ended(request, end)
        request.finish(end)
        self._release_siblings(request)

    def _with_rest(self, request: Request, end: End) -> End:
        """The end, once the answer's last text is out. Whatever that meets must not keep the client from hearing of the end."""
        try:
            return replace(end, outcome=Outcome.STOP) if request.add_rest() else end
        except Exception:
            logger.exception("request %s", request.request_id)
            return End(Outcome.INTERNAL, "the router failed to decode the answer's end")

    def _release_siblings(self, first: Request) -> None:
        siblings, first.siblings = first.siblings, []
        for request in siblings:
            if not request.lifecycle.has_ended:
                self._line.enter(request)
