"""One request's way through the decode worker, from submission to its one end.

    queued -> reserved -> prefilling -> receiving -> decoding -> ended
                     \\-> prefilling_locally ---------^

Every wait stands under the request's deadline. Whatever is held (KV blocks, landing slot, a place in the engine) is given back in
`clean_up`, on every path. A failed prefill or transfer is made good by computing the prompt here, once, and counted.
"""

import asyncio
import logging
import time

from decode.parts import Parts
from decode.remote_prefill import RemotePrefill
from decode.request import DecodeRequest
from decode.reservation import Reservation
from engine.ending import Ending
from engine.loop import ABORT_TIMEOUT_S
from engine.sequence import SequenceUpdate
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, ServalError
from protocol.lifecycle import Event
from protocol.outcomes import Outcome
from worker.hold import Point
from worker.wire import OUTCOME_OF, logprobs_to_proto

logger = logging.getLogger(__name__)

_OVER = (Outcome.CANCELLED, Outcome.DEADLINE)
STOPS = "this decode worker stops; the answer can go on elsewhere"
_OUR_BUG = "internal error at the decode worker"


class Flow:
    """Lives on the event loop. `run` never raises; `cancel` ends it early with outcome cancelled."""

    def __init__(self, request: DecodeRequest, parts: Parts) -> None:
        self.request = request
        self._parts = parts
        self._sequence = request.sequence
        self._remote: RemotePrefill | None = None
        self._settling: asyncio.Task[float] | None = None
        self._reservation = Reservation(request, parts)
        self._late_end: tuple[Outcome, str] | None = None
        self._is_handed_back = False
        self._in_engine = False
        self._computes_here: tuple[int, float] | None = None
        """Prompt tokens that the engine has to compute for it, and since when; None once they brought a token."""
        self._engine_end: asyncio.Future[SequenceUpdate] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(), name=f"request-{self.request.request_id}")
        return self._task

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def hand_back(self) -> None:
        """This worker stops: whoever asked goes on elsewhere, from the tokens that were sent until now."""
        self._is_handed_back = True
        self.cancel()

    # ---- what the engine says

    def take_update(self, update: SequenceUpdate) -> cluster_pb2.RequestOutput | None:
        """The message for one engine step's result; None when there is nothing to tell (the request has ended already). A bug
        that it meets ends this request, and is nothing to the others of that step."""
        if update.finish is not None and not self._engine_end.done():
            self._engine_end.set_result(update)
        if self.request.lifecycle.has_ended or self._late_end is not None:
            return None
        try:
            return self._told(update)
        except Exception:
            logger.exception("request %s: what the engine computed could not be told", self.request.request_id)
            return self._fail()

    def _told(self, update: SequenceUpdate) -> cluster_pb2.RequestOutput | None:
        request, now = self.request, time.monotonic()
        if request.decode_started_at is None and update.token_ids:
            request.decode_started_at = now
            self._observe_computed_here(now)
        if update.token_ids:
            request.lifecycle.advance(Event.TOKENS if request.lifecycle.can(Event.TOKENS) else Event.FIRST_TOKEN)
        ended = None
        # Whoever asked for an abort says why it ended.
        if update.finish is not None and update.finish != "aborted":
            ended = self._ended_by(Ending(update.sequence, update.finish, update.error))
        if not update.token_ids and ended is None:
            return None
        logprobs, prompt_logprobs = logprobs_to_proto(update.logprobs), logprobs_to_proto(update.prompt_logprobs)
        return request.output(update.token_ids, logprobs, ended, prompt_logprobs)

    def _fail(self) -> cluster_pb2.RequestOutput:
        """The message that says so. What is left of the request's way is cut short, so that the engine lets go of it."""
        self.cancel()
        if not self.request.lifecycle.has_ended:
            self.request.lifecycle.advance(Event.END)
        return self.request.output([], [], self.request.ended(Outcome.INTERNAL, _OUR_BUG))

    def _ended_by(self, ending: Ending) -> cluster_pb2.Ended:
        self.request.lifecycle.advance(Event.END)
        if ending.error is not None:
            return self.request.ended(ending.error.outcome, str(ending.error))
        return self.request.ended(OUTCOME_OF[ending.finish])

    @property
    def tokens_to_compute(self) -> int:
        """Prompt tokens that this worker has to compute for it."""
        return self._sequence.num_remaining if self._computes_here is not None else 0

    @property
    def waits_for_prompt(self) -> bool:
        """It is not in the engine yet."""
        return not self._in_engine

    def _observe_computed_here(self, now: float) -> None:
        if self._computes_here is not None:
            tokens, since = self._computes_here
            self._computes_here = None
            if not self._sequence.num_preemptions:
                self._parts.break_even.observe_here(tokens, now - since, self._parts.engine.num_running - 1)

    # ---- the way

    async def _run(self) -> None:
        request = self.request
        try:
            async with asyncio.timeout(max(0.0, request.deadline - time.monotonic())):
                await self._go()
        except TimeoutError:
            self._end(Outcome.DEADLINE, "the request's deadline passed")
        except asyncio.CancelledError:
            self._end_early()
        except ServalError as error:
            self._end(error.outcome, str(error))
        except Exception:
            logger.exception("request %s failed", request.request_id)
            self._end(Outcome.INTERNAL, _OUR_BUG)

    async def _go(self) -> None:
        request = self.request
        if self._sequence.output:  # an answer that goes on may have lost nothing but its end
            await self._prepare()
            if (ending := self._parts.engine.ending(self._sequence)) is not None:
                request.tell(request.output([], [], self._ended_by(ending)))
                return
        await self._parts.hold.at(Point.DECODE_QUEUED, request.sequence.request_id, request.facts)
        await self._parts.line.enter(self._reservation.attempt)
        request.lifecycle.advance(Event.RESERVED)
        request.timings.queue_s = time.monotonic() - request.arrived_at
        await self._parts.hold.at(Point.RESERVED, request.sequence.request_id, request.facts)
        if request.lease is None or not await self._prefill_remotely():
            await self._prefill_here()
        if self._in_engine:  # not when the first token was the last
            # Not the future itself: a cancelled waiter would cancel it, and `clean_up` asks it whether the engine has let go.
            await asyncio.wait({self._engine_end})

    async def _prepare(self) -> None:
        """Not on the event loop: a grammar may take long to compile, and others wait for their tokens."""
        if self._sequence.params.grammar and self._sequence.matcher is None:
            await asyncio.to_thread(self._parts.engine.prepare, self._sequence)

    # ---- prefill elsewhere

    async def _prefill_remotely(self) -> bool:
        """True: the KV is here, verified, and the first token went out. False: it could not be done; compute the prompt here."""
        request, parts = self.request, self._parts
        assert request.prefill is not None and request.lease is not None
        peer = parts.peers.get(request.prefill)
        remote = self._remote = RemotePrefill(peer, parts.receiver, parts.quarantine, request.lease, parts.config)
        request.lifecycle.advance(Event.PREFILL_CALLED)
        uncached_tokens, called_at = self._sequence.num_remaining, time.monotonic()
        remote.start(request.prefill_call(parts.incarnation, parts.engine.kv_cache.block_size))
        try:
            await self._prepare()  # while the prompt is computed
            self._take_first_token(await remote.first_token(), remote)
            if request.lifecycle.has_ended:
                return True
            landed = await remote.landed()
        except InvalidRequest:
            raise
        except ServalError as error:
            logger.warning("request %s: %s; computing the prompt here", request.request_id, error)
            parts.metrics.kv_transfer_failures.of(reason=str(error.outcome)).inc()
            self._reservation.local_reason = "prefill_failed"
            parts.pairs.failed(request.prefill, error)
            self._settle()
            request.lifecycle.advance(Event.PREFILL_LOST)
            return False
        parts.pairs.worked(request.prefill)
        exposed_s = request.note_landed(landed, remote.first_token_at)
        parts.metrics.kv_transfer_exposed.of().observe(exposed_s)
        parts.transfers.add(landed.bytes, exposed_s)
        parts.break_even.observe_elsewhere(uncached_tokens, landed.last_verified_s - called_at, parts.engine.num_running)
        self._settle()
        sequence = self._sequence
        sequence.num_computed = sequence.num_given
        # Siblings and the next turn find the prompt now, not when this answer has ended.
        parts.engine.kv_cache.commit(sequence.tokens, sequence.blocks, sequence.num_computed)
        request.lifecycle.advance(Event.KV_COMPLETE)
        self._to_engine()
        return True

    def _take_first_token(self, first: cluster_pb2.FirstToken, remote: RemotePrefill) -> None:
        """Sends the first token on at once: the client does not wait for the transfer. It may also be the last."""
        request, sequence = self.request, self._sequence
        request.note_first_token(first, remote.started)
        request.lifecycle.advance(Event.FIRST_TOKEN)
        sequence.append(first.token_id)
        sequence.drafts = list(first.draft_token_ids)
        ending = self._parts.engine.ending(sequence)
        if ending is not None and ending.error is not None:
            raise ending.error
        ended = None if ending is None else self._ended_by(ending)
        logprobs = [first.logprobs] if first.HasField("logprobs") else []
        output = request.output([first.token_id], logprobs, ended, first.prompt_logprobs)
        output.prefill_busy_s = first.busy_s
        request.tell(output)

    # ---- here

    async def _prefill_here(self) -> None:
        request = self.request
        await self._prepare()
        self._parts.metrics.local_prefills.of(reason=self._reservation.local_reason or "unknown").inc()
        request.lifecycle.advance(Event.PREFILL_CHOSEN_LOCALLY)
        request.timings.prefilled_locally = True
        self._computes_here = self._sequence.num_remaining, time.monotonic()
        self._to_engine()

    def _to_engine(self) -> None:
        self._parts.engine_loop.submit(self._sequence)
        self._in_engine = True

    # ---- the end

    def _end_early(self) -> None:
        if self._is_handed_back:
            self._tell_end(Outcome.UNAVAILABLE, STOPS, handed_back=True)
        else:
            self._end(Outcome.CANCELLED)

    def _end(self, outcome: Outcome, message: str = "") -> None:
        """Tells the router, unless it was told already. Where the request is over for the router in any case, and it is not known
        yet what it took of the prefill worker or of the engine here, `clean_up` tells it, with that."""
        if outcome not in _OVER or not (self._prefill_owes_time or self._engine_owes_time):
            self._tell_end(outcome, message)
        elif self._late_end is None and not self.request.lifecycle.has_ended:
            self._late_end = outcome, message

    @property
    def _prefill_owes_time(self) -> bool:
        return self._settling is None and self._remote is not None and self._remote.owes_busy_time

    @property
    def _engine_owes_time(self) -> bool:
        """Steps that compute the sequence may still run."""
        return self._in_engine and not self._engine_end.done()

    def _tell_end(self, outcome: Outcome, message: str, *, handed_back: bool = False) -> None:
        request = self.request
        if not request.lifecycle.has_ended:
            request.lifecycle.advance(Event.END)
            request.tell(request.output([], [], request.ended(outcome, message, handed_back=handed_back)))

    async def clean_up(self) -> None:
        """Gives everything back. Runs to its end whatever becomes of the request; every wait in it is bounded."""
        self._end_early()  # a task that was cancelled before its first step has told nobody
        if self._remote is not None and self._settling is None:
            self._settle()
        elif self.request.lease is not None and self._remote is None:
            self._parts.receiver.release(self.request.lease, quiesced=True)  # nobody was told of it
        if self._in_engine and not self._engine_end.done():
            self._parts.engine_loop.abort(self._sequence.request_id)
            await asyncio.wait({self._engine_end}, timeout=ABORT_TIMEOUT_S)
        if self._in_engine and not self._engine_end.done():
            logger.error("request %s: the engine does not let go; its KV blocks stay taken", self.request.request_id)
        elif self._sequence.blocks:
            self._parts.engine.release(self._sequence)
        self._parts.line.advance()
        if self._settling is not None:
            self._note_prefill_time(await self._settling)
            self._parts.line.advance()
        if self._late_end is not None:
            self._tell_end(*self._late_end)
        self._account_for_the_rest()

    def _account_for_the_rest(self) -> None:
        """Into the load reports: what the request's end has said, should it not have come through, and what it could not say."""
        request, book = self.request, self._parts.busy_book
        book.told(request.router, self._parts.incarnation, request.told_s)
        book.lost(request.router, request.untold_s)
        if request.prefill is not None and request.timings.prefill_busy_s:
            book.told(request.router, request.prefill.incarnation, request.timings.prefill_busy_s)

    def _settle(self) -> None:
        """Stops copying at once, and ends the lease in the background."""
        assert self._remote is not None
        self._remote.cancel()
        self._settling = asyncio.create_task(self._remote.settle())
        self._settling.add_done_callback(self._take_prefill_time)

    def _take_prefill_time(self, settled: asyncio.Task[float]) -> None:
        """What a prefill worker spent on a prompt that was then computed here counts too."""
        if not settled.cancelled() and settled.exception() is None:
            self._note_prefill_time(settled.result())

    def _note_prefill_time(self, busy_s: float) -> None:
        self.request.timings.prefill_busy_s = max(self.request.timings.prefill_busy_s, busy_s)
