"""The life of every accepted request: admission, placement, tokens, loss of a worker, one end.

Everything here is synchronous and runs on the event loop; its only effects are messages put into workers' outboxes, timers
and a woken front. So no state can change between a decision and its effect.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from protocol import cluster_pb2
from protocol.block_hash import chained_hashes, short_hash
from protocol.errors import Overloaded, Unavailable
from protocol.ids import RequestId
from protocol.lifecycle import Event, State
from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from router.accounting import Accounting
from router.caller import ANONYMOUS, Caller
from router.config import RouterConfig
from router.model import ModelInfo
from router.placement import Placement, Placer
from router.policies import Ask, eligible, policy_by_name
from router.prefix_index import PrefixIndex
from router.request import End, GenerateSpec, Request, Timeline
from router.text import AnswerText
from router.tokenizer import TextTokenizer
from router.workers import DECODE, PREFILL, Membership, Worker
from telemetry.tracing import NO_CONTEXT, TraceContext

logger = logging.getLogger(__name__)

_GONE = "the worker that had this request is gone; a retry can help"
_NO_WORKER = "no decode worker is available; a retry can help"


class Dispatcher:
    """Owns every open request. A request leaves it exactly once, through `_end`."""

    def __init__(
        self, config: RouterConfig, model: ModelInfo, tokenizer: TextTokenizer, members: Membership, accounting: Accounting
    ) -> None:
        self._config = config
        self._model = model
        self._tokenizer = tokenizer
        self._members = members
        self._accounting = accounting
        policy = policy_by_name(config.policy, config.slo_ttft_s, config.slo_itl_s)
        index = PrefixIndex(config.prefix_index_entries, config.prefix_expected_s)
        self._placer = Placer(policy, index, time.monotonic)
        self._numbers = itertools.count(1)
        self._picks = itertools.count(1)
        self._open: set[Request] = set()
        self._queued: dict[Request, None] = {}
        self._streaming = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False
        members.on_joined = self._place_queued
        members.on_lost = self._on_worker_lost

    @property
    def open_requests(self) -> int:
        return len(self._open)

    async def wait_idle(self) -> None:
        """Returns when no request is open."""
        await self._idle.wait()

    # ---- what fronts ask for

    def check_capacity(self) -> None:
        """Raises Overloaded or Unavailable when no request can be accepted now; fronts ask before they tokenise."""
        if self.is_draining:
            raise Unavailable("this router is shutting down; a retry elsewhere can help")
        waiting = len(self._open) - self._streaming
        if len(self._open) >= self._config.max_open_requests or waiting >= self._config.max_waiting:
            raise Overloaded("too many requests are waiting; a retry can help")

    def accept(
        self,
        request_id: RequestId,
        spec: GenerateSpec,
        caller: Caller = ANONYMOUS,
        timeout_s: float | None = None,
        trace: TraceContext = NO_CONTEXT,
    ) -> Request:
        """Takes the request, places it at once if it can, and owns it from now on. Raises as `check_capacity`. The workers' spans
        go below `trace`."""
        self.check_capacity()
        loop = asyncio.get_running_loop()
        limit_s = min(timeout_s or self._config.request_timeout_s, self._config.request_timeout_s)
        now = loop.time()
        text = AnswerText(self._tokenizer, spec.stop, spec.sampling.min_tokens)
        request = Request(request_id, spec, text, Timeline(arrived=now, deadline=now + limit_s), caller)
        request.trace = trace
        self._open.add(request)
        self._idle.clear()
        request.timers.append(loop.call_at(request.timeline.deadline, self._on_deadline, request))
        request.lifecycle.advance(Event.ADMITTED)
        self._place_or_queue(request)
        return request

    def abandon(self, request: Request, outcome: Outcome = Outcome.CANCELLED) -> None:
        """The client no longer waits. Does nothing to a request that has ended."""
        self._end(request, End(outcome, "the client went away"))

    def end_all(self, message: str) -> None:
        """Ends every open request as unavailable: the router stops."""
        for request in list(self._open):
            self._end(request, End(Outcome.UNAVAILABLE, message))

    # ---- what workers say

    def on_step(self, worker: Worker, step: cluster_pb2.StepOutput) -> None:
        """One engine step's tokens. Those of requests that ended here already are dropped: the worker has not heard yet."""
        now = asyncio.get_running_loop().time()
        for output in step.outputs:
            request = worker.open_requests.get(output.request)
            if request is None:
                continue
            try:
                self._on_output(request, output, now)
            except Exception:
                logger.exception("request %s", request.request_id)
                self._end(request, End(Outcome.INTERNAL, "the router failed to handle the answer"))

    def on_load(self, worker: Worker, load: cluster_pb2.LoadReport, now: float) -> None:
        """A worker's periodic report."""
        worker.take_report(load, now)

    def on_cache(self, worker: Worker, change: cluster_pb2.CacheChange) -> None:
        """What a prompt may find in a worker's prefix cache has changed."""
        self._placer.on_cache_change(worker, change)
        self._accounting.prefix_index(self._placer.index_entries)

    def _on_output(self, request: Request, output: cluster_pb2.RequestOutput, now: float) -> None:
        stopped = bool(output.token_ids) and self._add_tokens(request, output, now)
        if output.HasField("ended"):
            self._on_ended(request, output.ended, stopped)
        elif stopped:
            self._end(request, End(Outcome.STOP))

    def _add_tokens(self, request: Request, output: cluster_pb2.RequestOutput, now: float) -> bool:
        """True when a stop string is complete; tokens after it are dropped."""
        if request.lifecycle.state is State.SUBMITTED:
            self._streaming += 1
            self._leave_prefill(request)
        request.lifecycle.advance(Event.TOKENS)
        self._accounting.tokens(request, len(output.token_ids), now)
        end_tokens = self._end_tokens(request.spec)
        logprobs = output.logprobs if request.spec.sampling.logprobs is not None else ()
        for token_id, token_logprobs in itertools.zip_longest(output.token_ids, logprobs):
            if request.add(token_id, token_logprobs, has_text=token_id not in end_tokens):
                return True
        return False

    def _end_tokens(self, spec: GenerateSpec) -> frozenset[int]:
        own = frozenset(spec.sampling.stop_token_ids)
        return own if spec.sampling.ignore_eos else own | self._model.eos_token_ids

    def _on_ended(self, request: Request, ended: cluster_pb2.Ended, stopped: bool) -> None:
        self._leave_workers(request)
        self._accounting.worker_timings(ended.timings)
        request.cached_tokens = min(ended.cached_tokens, len(request.spec.prompt))
        outcome = Outcome.STOP if stopped else _outcome_of(ended)
        if not self._try_elsewhere(request, outcome):
            self._end(request, End(outcome, ended.message))

    # ---- placement

    def _place_or_queue(self, request: Request) -> None:
        if not self._place(request):
            loop = asyncio.get_running_loop()
            self._queued[request] = None
            request.timers.append(loop.call_later(self._config.worker_wait_s, self._on_wait_over, request, request.number))
            self._show_counts()

    def _place_queued(self) -> None:
        for request in list(self._queued):
            if self._place(request):
                del self._queued[request]

    def _place(self, request: Request) -> bool:
        ask = self._ask(request)
        placement = self._placer.place(ask, self._members.pool(DECODE), self._members.pool(PREFILL))
        if placement is None:
            return False
        self._placer.placed(placement, ask)
        self._submit(request, placement)
        return True

    def _ask(self, request: Request) -> Ask:
        return Ask(
            prompt_tokens=len(request.spec.prompt) + len(request.output),
            total_tokens=request.total_tokens,
            hashes=self._hashes(request),
            avoided=frozenset(request.avoided),
            session=request.spec.session,
        )

    def _hashes(self, request: Request) -> Sequence[int]:
        """Of the prompt's KV blocks; computed once per request, and only where the policy asks for them."""
        if not self._placer.uses_hashes or not (block_size := self._members.block_size):
            return ()
        if request.prompt_hashes is None:
            request.prompt_hashes = [short_hash(block) for block in chained_hashes(request.spec.prompt, block_size)]
        return request.prompt_hashes

    def _submit(self, request: Request, placement: Placement) -> None:
        now = asyncio.get_running_loop().time()
        request.lifecycle.advance(Event.SUBMITTED)
        request.timeline.submitted = request.timeline.submitted or now
        request.number = next(self._numbers)
        request.placement = placement
        decode, prefill = placement.decode, placement.prefill
        request.decode, request.prefill = decode, prefill
        request.is_at_decode, request.is_at_prefill = True, prefill is not None
        request.is_computing = True
        decode.open_requests[request.number] = request
        for worker in (decode, prefill):
            if worker is not None:
                worker.in_flight += 1
                worker.in_flight_tokens += len(request.spec.prompt)
                worker.sent_since_report += 1
                worker.sent_tokens_since_report += len(request.spec.prompt)
                worker.last_pick = next(self._picks)
        self._accounting.placement(placement)
        asked = prefill or placement.standby
        submit = cluster_pb2.Submit(
            request=request.number,
            request_id=f"{request.request_id}.{request.retries}" if request.retries else request.request_id,
            prompt=[*request.spec.prompt, *request.output],
            sampling=_rest_of(request).to_proto(),
            prefill=asked.hello.peer if asked else None,
            timeout_s=max(0.001, request.timeline.deadline - now),
            traceparent=request.trace.traceparent,
            tracestate=request.trace.tracestate,
        )
        decode.outbox.put_nowait(cluster_pb2.FromRouter(submit=submit))
        self._show_counts()

    # ---- losses and ends

    def _on_worker_lost(self, worker: Worker, reason: str) -> None:
        self._placer.on_worker_lost(worker)
        requests = list(worker.open_requests.values())
        logger.log(
            logging.INFO if worker.is_draining else logging.WARNING,
            "%s %s left: %s; it had %d open requests", worker.pool, worker.name, reason, len(requests),
        )  # fmt: skip
        for request in requests:
            self._leave_workers(request)
            if not self._try_elsewhere(request, Outcome.UNAVAILABLE):
                self._end(request, End(Outcome.UNAVAILABLE, _GONE))

    def _try_elsewhere(self, request: Request, outcome: Outcome) -> bool:
        """Goes on at another worker from the tokens that the client has already; False when that cannot help. Draws are keyed
        by (seed, position), so the answer is the one it would have been. Presence and frequency penalties count answer tokens
        only, and a worker could not tell those from the prompt: such an answer cannot go on once it has begun."""
        sampling = request.spec.sampling
        has_begun_with_penalties = request.output and (sampling.presence_penalty or sampling.frequency_penalty)
        if not outcome.is_retryable or request.retries >= self._config.max_retries or has_begun_with_penalties:
            return False
        self._avoid_culprit(request, outcome)
        if outcome is Outcome.OVERLOADED and not eligible(self._ask(request), self._members.pool(DECODE)):
            return False
        request.retries += 1
        if request.lifecycle.state is State.STREAMING:
            self._streaming -= 1
        request.lifecycle.advance(Event.WORKER_LOST)
        if len(request.output) >= sampling.max_tokens:  # only the word that it ended was lost
            self._end(request, End(Outcome.LENGTH))
        else:
            self._place_or_queue(request)
        return True

    def _avoid_culprit(self, request: Request, outcome: Outcome) -> None:
        """A worker that said no is not asked again. One whose stream broke is gone, or welcome when it is back."""
        if outcome in (Outcome.PREFILL_FAILED, Outcome.TRANSFER_FAILED) and request.prefill is not None:
            request.avoided.add(request.prefill.incarnation)
        elif outcome is Outcome.OVERLOADED and request.decode is not None:
            request.avoided.add(request.decode.incarnation)

    def _on_deadline(self, request: Request) -> None:
        self._end(request, End(Outcome.DEADLINE, "the request's deadline passed"))

    def _on_wait_over(self, request: Request, number: int) -> None:
        if request in self._queued and request.number == number:
            self._end(request, End(Outcome.UNAVAILABLE, _GONE if request.retries else _NO_WORKER))

    def _end(self, request: Request, end: End) -> None:
        """The only way out; whatever comes later for this request finds it gone."""
        if request.lifecycle.has_ended:
            return
        if request.lifecycle.state is State.STREAMING:
            self._streaming -= 1
        request.lifecycle.advance(Event.END)
        if request.is_at_decode and request.decode is not None:  # the worker has not said that it ended
            request.decode.outbox.put_nowait(cluster_pb2.FromRouter(cancel=cluster_pb2.Cancel(request=request.number)))
        self._leave_workers(request)
        self._queued.pop(request, None)
        self._open.discard(request)
        for timer in request.timers:
            timer.cancel()
        if end.outcome.is_success and request.add_rest():
            end = replace(end, outcome=Outcome.STOP)
        request.timeline.ended = asyncio.get_running_loop().time()
        self._accounting.ended(request, end)
        request.finish(end)
        self._show_counts()
        if not self._open:
            self._idle.set()

    def _leave_workers(self, request: Request) -> None:
        self._leave_prefill(request)
        if request.is_at_decode and request.decode is not None:
            request.is_at_decode = False
            request.decode.open_requests.pop(request.number, None)
            _uncount(request.decode, request)

    def _leave_prefill(self, request: Request) -> None:
        if request.is_computing and request.placement is not None:
            request.is_computing = False
            self._placer.computed(request.placement)
        if request.is_at_prefill and request.prefill is not None:
            request.is_at_prefill = False
            _uncount(request.prefill, request)

    def _show_counts(self) -> None:
        self._accounting.counts(running=self._streaming, waiting=len(self._open) - self._streaming)


def _uncount(worker: Worker, request: Request) -> None:
    worker.in_flight -= 1
    worker.in_flight_tokens -= len(request.spec.prompt)


def _outcome_of(ended: cluster_pb2.Ended) -> Outcome:
    """A word that is none of ours is a bug on the other side."""
    return Outcome(ended.outcome) if ended.outcome in set(Outcome) else Outcome.INTERNAL


def _rest_of(request: Request) -> SamplingParams:
    """The sampling of what is still to come, for a worker that takes the answer so far as part of the prompt."""
    sampling, done = request.spec.sampling, len(request.output)
    return replace(sampling, max_tokens=sampling.max_tokens - done, min_tokens=max(0, sampling.min_tokens - done))
