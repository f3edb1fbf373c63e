"""All requests of a decode worker: takes routers' orders, hands engine results to their streams, one message per step."""

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable

from decode.flow import STOPS, Flow
from decode.parts import Parts
from decode.request import DecodeRequest
from engine.sequence import SequenceUpdate
from protocol import cluster_pb2
from protocol.ids import Incarnation
from protocol.outcomes import Outcome
from worker.hold import Point
from worker.router_link import RouterLink

logger = logging.getLogger(__name__)

HAND_BACK_S = 5.0
"""For handed-back requests to give back what they hold: an engine step's end, and an answer from their prefill workers."""


class Requests:
    """An OrderHandler. Lives on the event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._keys = itertools.count(1)
        self._by_key: dict[str, Flow] = {}
        self._by_number: dict[tuple[RouterLink, int], Flow] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def __len__(self) -> int:
        return len(self._by_key)

    # ---- OrderHandler

    def on_submit(self, link: RouterLink, submit: cluster_pb2.Submit) -> None:
        request = DecodeRequest.from_submit(link, submit, str(next(self._keys)), self._parts.tracing)
        if self._draining:
            link.send([request.output([], [], request.ended(Outcome.UNAVAILABLE, STOPS, handed_back=True))])
            return
        flow = Flow(request, self._parts)
        self._by_key[request.sequence.request_id] = flow
        self._by_number[link, request.number] = flow
        self._idle.clear()
        task = asyncio.create_task(self._see_through(flow, flow.start()), name=f"clean-up-{request.request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_cancel(self, link: RouterLink, request: int) -> None:
        flow = self._by_number.get((link, request))
        if flow is not None:
            flow.cancel()

    def on_lost(self, link: RouterLink) -> None:
        numbers = [(owner, number) for owner, number in self._by_number if owner is link]
        # At once: the router that answers on this link next begins its numbers anew.
        lost = [self._by_number.pop(number) for number in numbers]
        if lost:
            logger.warning("router %s is gone; giving up its %d requests", link.address, len(lost))
        for flow in lost:
            flow.request.is_given_up = True
            flow.cancel()

    def describe_load(self, load: cluster_pb2.LoadReport, router: Incarnation) -> None:
        """Fills in what only the role knows, for that router."""
        parts = self._parts
        load.waiting = max(0, len(self) - load.running)
        load.waiting_for_blocks = len(parts.line)
        flows = self._by_key.values()
        load.queued_tokens = sum(flow.tokens_to_compute for flow in flows)
        load.kv_blocks_in_prefill = sum(len(flow.request.sequence.blocks) for flow in flows if flow.waits_for_prompt)
        load.untold_busy_s = sum(flow.request.untold_s for flow in flows if flow.request.router == router)
        parts.busy_book.describe(load, router)
        load.transfer_bytes_per_s = parts.transfers.per_second
        load.avoided_prefill.extend(parts.pairs.avoided)
        load.local_prefill_max_tokens = parts.break_even.max_tokens
        parts.metrics.local_prefill_max_tokens.of().set(parts.break_even.max_tokens)

    # ---- the engine's results

    def on_updates(self, updates: Iterable[SequenceUpdate]) -> None:
        """One engine step: one message to each router."""
        by_link: dict[RouterLink, list[cluster_pb2.RequestOutput]] = defaultdict(list)
        for update in updates:
            flow = self._by_key.get(update.request_id)
            output = flow.take_update(update) if flow is not None else None
            if flow is not None and output is not None and not flow.request.is_given_up:
                by_link[flow.request.link].append(output)
        for link, outputs in by_link.items():
            link.send(outputs)

    def hold_step(self, updates: Iterable[SequenceUpdate]) -> None:
        """In the engine's thread, after each step."""
        if self._parts.hold.wants(Point.DECODING):
            flows = [flow for update in updates if (flow := self._by_key.get(update.request_id)) is not None]
            self._parts.hold.slow(Point.DECODING, [(flow.request.sequence.request_id, flow.request.facts) for flow in flows])

    # ---- the end

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests, and returns when the open ones have ended. Those still open at the deadline are handed back: their
        routers go on with them elsewhere. Takes at most HAND_BACK_S longer."""
        self._draining = True
        if not await self._is_idle_within(timeout_s):
            logger.info("%d requests are still open after %g s and move to other workers", len(self), timeout_s)
            for flow in list(self._by_key.values()):
                flow.hand_back()
            await self._wait_idle(HAND_BACK_S)

    async def hand_back_all(self, timeout_s: float) -> None:
        """At once, also while a drain still waits: nobody who was in a hurry meant the requests."""
        for flow in list(self._by_key.values()):
            flow.hand_back()
        await self._wait_idle(timeout_s)

    async def _wait_idle(self, timeout_s: float) -> None:
        if not await self._is_idle_within(timeout_s):
            logger.warning("%d requests still open after %g s", len(self), timeout_s)

    async def _is_idle_within(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _see_through(self, flow: Flow, way: asyncio.Task[None]) -> None:
        await asyncio.wait({way})
        try:
            await flow.clean_up()
        except Exception:
            logger.exception("request %s could not be cleaned up", flow.request.request_id)
        del self._by_key[flow.request.sequence.request_id]
        number = (flow.request.link, flow.request.number)
        if self._by_number.get(number) is flow:
            del self._by_number[number]
        if not self._by_key:
            self._idle.set()
