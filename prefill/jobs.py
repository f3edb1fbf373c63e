"""The prompts a prefill worker has in hand: each from the call that brings it to the moment nothing of it can be written.

A job's way: to the engine -> its layer hook opens a transfer and announces each layer's blocks -> the first token goes back at
once -> the last write completes -> the engine's blocks are released. A call that was accepted always ends with Sent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from engine.engine import Engine
from engine.loop import ABORT_TIMEOUT_S, EngineLoop
from engine.sequence import Sequence, SequenceUpdate
from kvtransfer.sender import Sender
from kvtransfer.transfer import SendResult
from prefill.config import PrefillConfig
from prefill.engine_side import EngineSide
from prefill.job import Job
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, Overloaded, ServalError, TransferAborted, Unavailable
from protocol.ids import Incarnation, LeaseId
from protocol.lifecycle import Event, State
from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from telemetry import span_names
from telemetry.recent import RecentRate
from telemetry.tracing import TraceContext, Tracing
from worker.busy_book import BusyBook
from worker.hold import Hold, Point
from worker.wire import logprobs_to_proto

logger = logging.getLogger(__name__)


class Jobs:
    """All jobs of one worker. Lives on the event loop; `engine_side` is for the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        sender: Sender,
        peer: cluster_pb2.Peer,
        config: PrefillConfig,
        tracing: Tracing,
        hold: Hold,
    ) -> None:
        self._engine = engine
        self._engine_loop: EngineLoop | None = None
        self._sender = sender
        self._peer = peer
        self._config = config
        self._tracing = tracing
        self._hold = hold
        self._by_key: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._transfers = RecentRate()
        self._busy_book = BusyBook()
        self._loop = asyncio.get_running_loop()
        self.engine_side = EngineSide(self._by_key, engine, sender, tracing, hold)

    def __len__(self) -> int:
        return len(self._by_key)

    def describe_load(self, load: cluster_pb2.LoadReport, router: Incarnation) -> None:
        """Fills in what only the role knows, for that router."""
        load.queued_tokens = sum(job.sequence.num_remaining for job in self._by_key.values() if not job.computed.done())
        load.transfer_bytes_per_s = self._transfers.per_second
        load.untold_busy_s = sum(job.untold_s for job in self._by_key.values() if job.router == router)
        self._busy_book.describe(load, router)

    def attach(self, engine_loop: EngineLoop) -> None:
        """The loop that runs the engine; it calls back into this object, so it is made after it."""
        self._engine_loop = engine_loop

    # ---- the service's calls

    async def introduce(self, request: cluster_pb2.IntroduceRequest) -> cluster_pb2.Peer:
        decode = request.decode
        introduced = self._sender.introduce(
            decode.name,
            Incarnation(decode.incarnation),
            request.transport_metadata,
            request.landing_address,
            request.landing_blocks,
            request.layout_fingerprint,
        )
        await asyncio.wrap_future(introduced)
        return self._peer

    async def run(self, request: cluster_pb2.PrefillRequest) -> AsyncGenerator[cluster_pb2.PrefillEvent, None]:
        """The events of one prompt. Closing the iterator early aborts the job and its lease."""
        job = self._accept(request)
        try:
            await self._submit(job)
        except BaseException as error:
            job.span.end(error.outcome if isinstance(error, ServalError) else Outcome.CANCELLED)
            self._forget(job)
            raise
        try:
            # Shielded: a call that is cancelled would cancel the future, and `_clean_up` asks it whether the engine has let go.
            update = await asyncio.shield(job.computed)
            if update.finish == "error" or not update.token_ids:
                yield self._sent(await self._abort_transfer(job), str(update.error or "the prompt was given up"))
                return
            job.lifecycle.advance(Event.FIRST_TOKEN)
            queue_s = job.started_at - job.accepted_at
            yield cluster_pb2.PrefillEvent(started=cluster_pb2.Started(cached_tokens=job.cached_tokens, queue_s=queue_s))
            self._tell_time(job)
            yield self._first_token(job, update)
            if job.transfer is None:
                yield self._sent(None, str(job.refused or "no transfer was opened"))
                return
            await self._hold.at(Point.FIRST_TOKEN, job.sequence.request_id, job.facts)
            job.transfer.lift_limit()
            result = await asyncio.wrap_future(job.transfer.done)
            if result.error is None:
                self._transfers.add(result.bytes, result.exposed_s)
            job.lifecycle.advance(Event.WRITTEN if result.error is None else Event.ABORTED)
            yield self._sent(result, str(result.error) if result.error else "")
        finally:
            task = asyncio.create_task(self._clean_up(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def abort(self, request: cluster_pb2.AbortRequest) -> cluster_pb2.AbortResponse:
        """Quiesced once nothing can be written under the lease any more. The engine is waited for too, within the same time: only
        at the end of a step is it known what the prompt took of it. Of another incarnation's writes nothing is known here."""
        if request.prefill_incarnation != self._peer.incarnation:
            return cluster_pb2.AbortResponse()
        answer = asyncio.wrap_future(self._sender.abort(Incarnation(request.decode_incarnation), LeaseId(request.lease_id)))
        lease = (request.decode_incarnation, request.lease_id)
        jobs = [job for job in self._by_key.values() if (job.decode_incarnation, job.lease_id) == lease]
        for job in jobs:
            job.is_aborted = True
            job.tellers += 1
            self._abort_compute(job)
        awaited: list[asyncio.Future[Any]] = [answer, *(job.computed for job in jobs if job.is_submitted)]
        try:
            await asyncio.wait(awaited, timeout=self._config.abort_timeout_s)
            busy_s = sum(self._tell_time(job) for job in jobs)
            return cluster_pb2.AbortResponse(quiesced=answer.done() and answer.result(), busy_s=busy_s)
        finally:
            for job in jobs:
                self._told_all(job)

    # ---- one job

    def _accept(self, request: cluster_pb2.PrefillRequest) -> Job:
        if request.prefill_incarnation != self._peer.incarnation:
            raise Unavailable(f"{self._peer.name} is incarnation {self._peer.incarnation:x} now")
        if self._draining:
            raise Unavailable(f"{self._peer.name} is draining")
        if len(self) >= self._config.max_open_requests:
            raise Overloaded(f"{len(self)} prompts are open already")
        if not request.prompt:
            raise InvalidRequest("prompt must not be empty", "prompt")
        needed = self._engine.kv_cache.blocks_for(len(request.prompt))
        if needed > self._engine.kv_cache.num_blocks:
            raise InvalidRequest(
                f"the prompt needs {needed} KV blocks; this worker has {self._engine.kv_cache.num_blocks}", "prompt"
            )
        key = f"{request.decode_incarnation:x}:{request.lease.lease_id}"
        if key in self._by_key:
            raise InvalidRequest(f"lease {request.lease.lease_id} is in use", "lease")
        span = self._tracing.start(span_names.PREFILL, TraceContext(request.traceparent, request.tracestate))
        job = self._by_key[key] = Job(request, _sequence(key, request), span, computed=self._loop.create_future())
        self._idle.clear()
        return job

    async def _submit(self, job: Job) -> None:
        assert self._engine_loop is not None
        if job.sequence.params.grammar:  # may take long to compile, and others wait for their calls
            await asyncio.to_thread(self._engine.prepare, job.sequence)
        await self._hold.at(Point.PREFILL_QUEUED, job.sequence.request_id, job.facts)
        if job.is_aborted:
            raise TransferAborted("the decode worker ended the lease")
        job.is_submitted = True
        self._engine_loop.submit(job.sequence)

    def _forget(self, job: Job) -> None:
        del self._by_key[job.sequence.request_id]
        if not self._by_key:
            self._idle.set()

    def _first_token(self, job: Job, update: SequenceUpdate) -> cluster_pb2.PrefillEvent:
        logprobs = logprobs_to_proto(update.logprobs)
        return cluster_pb2.PrefillEvent(
            first_token=cluster_pb2.FirstToken(
                token_id=update.token_ids[0],
                logprobs=logprobs[0] if logprobs else None,
                prefill_s=time.monotonic() - job.started_at,
                prompt_logprobs=logprobs_to_proto(update.prompt_logprobs),
                busy_s=update.sequence.busy_s,
                draft_token_ids=update.sequence.drafts,
            )
        )

    @staticmethod
    def _sent(result: SendResult | None, error: str) -> cluster_pb2.PrefillEvent:
        """`result` None: nothing was ever written."""
        if result is None:
            return cluster_pb2.PrefillEvent(sent=cluster_pb2.Sent(error=error, retryable=True, quiesced=True))
        return cluster_pb2.PrefillEvent(
            sent=cluster_pb2.Sent(
                error=error,
                retryable=True,
                quiesced=result.quiesced,
                bytes=result.bytes,
                seconds=result.seconds,
                writes=result.writes,
                descriptors=result.descriptors,
            )
        )

    def _abort_compute(self, job: Job) -> None:
        if not job.computed.done():
            assert self._engine_loop is not None
            self._engine_loop.abort(job.sequence.request_id)

    async def _abort_transfer(self, job: Job) -> SendResult | None:
        """Ends the job's transfer, if it has one, and returns how it ended."""
        if job.transfer is None:
            return None
        if not job.transfer.done.done():
            self._sender.abort(job.decode_incarnation, job.lease_id)
        return await asyncio.wrap_future(job.transfer.done)

    async def _clean_up(self, job: Job) -> None:
        """Ends what still runs and releases the blocks: only after the engine and the sender have let go of them."""
        if job.lifecycle.state is not State.QUIESCING:
            job.lifecycle.advance(Event.ABORTED)
        if not job.computed.done():
            self._abort_compute(job)
            await asyncio.wait({job.computed}, timeout=ABORT_TIMEOUT_S)
        job.end_spans(await self._abort_transfer(job))
        if job.lifecycle.can(Event.QUIESCED):
            job.lifecycle.advance(Event.QUIESCED)
        self._forget(job)
        self._told_all(job)
        if not job.computed.done():
            logger.error("request %s: the engine does not let go; its KV blocks stay taken", job.request.request_id)
        else:
            self._engine.release(job.sequence)

    # ---- what it took

    def _tell_time(self, job: Job) -> float:
        """Seconds of the engine for the prompt until now; whoever hears of it is the decode worker."""
        untold_s = job.untold_s
        job.told_s += untold_s
        self._busy_book.told(job.router, job.decode_incarnation, untold_s)
        return job.told_s

    def _told_all(self, job: Job) -> None:
        """One of those that can tell has ended. What the last leaves is told by nobody."""
        job.tellers -= 1
        if not job.tellers:
            self._busy_book.lost(job.router, job.untold_s)
            job.told_s += job.untold_s

    # ---- the end

    async def drain(self, timeout_s: float) -> None:
        """Refuses new prompts; returns when the open ones have ended, or at the deadline."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            logger.warning("%d prompts still open after %g s", len(self), timeout_s)


def _sequence(key: str, request: cluster_pb2.PrefillRequest) -> Sequence:
    """Ends with the next token of the answer, which is the first where none is known."""
    begin = len(request.prompt) - request.output_tokens
    params = SamplingParams.from_proto(request.sampling, default_max_tokens=1)
    params = replace(params, max_tokens=request.output_tokens + 1)
    return Sequence(key, list(request.prompt[:begin]), params, output=list(request.prompt[begin:]))
