"""Attempts: each places one request at a decode worker and, mostly, a prefill worker. What those were sent is counted here."""

import asyncio
import itertools
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from protocol import cluster_pb2
from protocol.block_hash import chained_hashes, short_hash
from protocol.lifecycle import Event
from protocol.sampling import SamplingParams
from router.accounting import Accounting, Spent
from router.config import RouterConfig
from router.placement.placer import Placement, Placer
from router.placement.policies import Ask, eligible, policy_by_name
from router.placement.prefix_index import PrefixIndex
from router.placement.window import has_compute_room, has_decode_room
from router.request import Request
from router.waiting_line import Placed
from router.workers import DECODE, PREFILL, Membership, Worker


class Attempts:
    """Everything that `place` adds to workers' counts, `leave` takes off again, once."""

    def __init__(self, config: RouterConfig, members: Membership, accounting: Accounting) -> None:
        self._config = config
        self._members = members
        self._accounting = accounting
        policy = policy_by_name(config.policy, config.slo_ttft_s, config.slo_itl_s)
        self._placer = Placer(policy, PrefixIndex(config.prefix_index_entries), config.prefix_expected_s)
        self._numbers = itertools.count(1)
        self._picks = itertools.count(1)
        self._cancelled: dict[Worker, dict[int, tuple[Request, Spent]]] = {}
        """Whose workers have not said yet what they cost."""
        self.on_room: Callable[[], None] = lambda: None
        """Called when something was taken off a worker."""
        self.is_short_of_decode = False
        """Whom the last one in turn that found no room waits for: decode, or prefill."""

    # ---- the decision

    @property
    def decode_workers(self) -> list[Worker]:
        """All there are, whether they have room now or not."""
        return self._members.pool(DECODE)

    def held_by(self, worker: Worker) -> list[Request]:
        """A decode worker's open requests; those whose prompt a prefill worker has in hand."""
        if worker.hello.role == DECODE:
            return list(worker.open_requests.values())
        return [
            request
            for decode in self.decode_workers
            for request in decode.open_requests.values()
            if request.is_at_prefill and request.prefill is worker
        ]

    def place(self, request: Request, kept: Set[Worker] = frozenset()) -> Placed:
        """Sends it to the workers that suit it best among those with room. `kept`: decode workers that it must not go to now."""
        ask = self._ask(request)
        takers = eligible(ask, self.decode_workers)
        if not takers:
            return Placed.NO_WORKER
        decoders = [worker for worker in takers if worker not in kept]
        overcommit, window_s = self._config.decode_overcommit, self._config.prefill_window_s
        now = asyncio.get_running_loop().time()
        ready = [worker for worker in decoders if has_decode_room(worker, ask.prompt_tokens, overcommit)]
        prefillers = eligible(ask, self._members.pool(PREFILL))
        free = [worker for worker in prefillers if has_compute_room(worker, window_s, now)]
        if not prefillers:
            ready = [worker for worker in ready if has_compute_room(worker, window_s, now)]
        # A busy worker may still be the fastest, for what it has cached: a prompt waits there no longer than that saves it.
        may_wait = bool(free) and self._placer.uses_predictions
        placement = self._placer.place(ask, ready, prefillers if may_wait else free or prefillers)
        if not kept:
            # While prefill has all that it can do, who finds no room at decode would only wait there for prefill.
            is_prefill_busy = bool(prefillers) and not free
            no_decode = placement is None or placement.computing.hello.role == DECODE
            self.is_short_of_decode = no_decode and not is_prefill_busy
        if placement is None:
            return Placed.NO_ROOM
        if not has_compute_room(placement.computing, window_s, now) and not (may_wait and placement.prefill is not None):
            return Placed.NO_ROOM
        self._placer.placed(placement, ask)
        self._submit(request, placement)
        return Placed.YES

    def _ask(self, request: Request) -> Ask:
        first = request.sibling_of
        return Ask(
            prompt_tokens=len(request.spec.prompt) + len(request.output),
            total_tokens=request.total_tokens,
            hashes=self._hashes(request),
            avoided=frozenset(request.avoided),
            session=request.spec.session,
            preferred=first.decode.incarnation if first is not None and first.decode is not None else None,
        )

    def _hashes(self, request: Request) -> Sequence[int]:
        """Of the prompt's KV blocks; computed once per request, and only where the policy asks for them."""
        if not self._placer.uses_predictions or not (block_size := self._members.block_size):
            return ()
        if request.prompt_hashes is None:
            request.prompt_hashes = [short_hash(block) for block in chained_hashes(request.spec.prompt, block_size)]
        return request.prompt_hashes

    # ---- at workers

    def _submit(self, request: Request, placement: Placement) -> None:
        now = asyncio.get_running_loop().time()
        request.lifecycle.advance(Event.SUBMITTED)
        request.timeline.submitted = request.timeline.submitted or now
        request.number = next(self._numbers)
        request.attempts += 1
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
        asked = request.asked_prefill
        submit = cluster_pb2.Submit(
            request=request.number,
            request_id=f"{request.request_id}.{request.attempts - 1}" if request.attempts > 1 else request.request_id,
            prompt=[*request.spec.prompt, *request.output],
            output_tokens=len(request.output),
            sampling=_sampling_of(request).to_proto(),
            prefill=asked.hello.peer if asked else None,
            timeout_s=max(0.001, request.timeline.deadline - now),
            traceparent=request.trace.traceparent,
            tracestate=request.trace.tracestate,
        )
        decode.outbox.put_nowait(cluster_pb2.FromRouter(submit=submit))

    def cancel(self, request: Request, spent: Spent) -> None:
        """Tells the decode worker that nobody waits for the rest, and takes the request off its workers."""
        if request.is_at_decode and request.decode is not None:
            request.decode.outbox.put_nowait(cluster_pb2.FromRouter(cancel=cluster_pb2.Cancel(request=request.number)))
            self._cancelled.setdefault(request.decode, {})[request.number] = (request, spent)
            request.owes_figures = True
        self.leave(request)

    def leave(self, request: Request) -> None:
        """The attempt is over at every worker; idempotent."""
        self.leave_prefill(request)
        if request.is_at_decode and request.decode is not None:
            request.is_at_decode = False
            request.decode.open_requests.pop(request.number, None)
            _uncount(request.decode, request)
            self.on_room()

    def leave_prefill(self, request: Request) -> None:
        """Its prompt is computed, or no longer wanted; idempotent."""
        if request.is_computing and request.placement is not None:
            request.is_computing = False
            self._placer.computed(request.placement)
            self.on_room()
        if request.is_at_prefill and request.prefill is not None:
            request.is_at_prefill = False
            _uncount(request.prefill, request)

    # ---- what workers say

    def on_late_end(self, worker: Worker, number: int, ended: cluster_pb2.Ended) -> None:
        """A cancelled request has ended at its worker too: now it is known what it cost."""
        late = self._cancelled.get(worker, {}).pop(number, None)
        if late is not None:
            request, spent = late
            request.cached_tokens = min(ended.cached_tokens, len(request.spec.prompt))
            self._accounting.attempt_ended(request, ended.timings, spent)
            request.settle()

    def on_load(self, worker: Worker, load: cluster_pb2.LoadReport, now: float) -> None:
        """A worker's periodic report."""
        self._accounting.computed.on_report(worker, load)
        worker.take_report(load, now)

    def on_cache(self, worker: Worker, change: cluster_pb2.CacheChange) -> None:
        self._placer.on_cache_change(worker, change)
        self._accounting.prefix_index(self._placer.index_entries)

    def on_worker_lost(self, worker: Worker) -> None:
        self._placer.on_worker_lost(worker)
        self._accounting.computed.on_gone(worker)
        for request in worker.open_requests.values():
            self._accounting.attempt_lost(request)
        for request, _ in self._cancelled.pop(worker, {}).values():
            self._accounting.attempt_lost(request)
            request.settle()


def _uncount(worker: Worker, request: Request) -> None:
    worker.in_flight -= 1
    worker.in_flight_tokens -= len(request.spec.prompt)


def _sampling_of(request: Request) -> SamplingParams:
    """As the client asked for it, however much of the answer there is: the worker is told which tokens are answer. What the
    client has already is not computed again."""
    sampling = request.spec.sampling
    return replace(sampling, prompt_logprobs=None) if request.output else sampling
