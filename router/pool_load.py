"""What both pools have to do, as this router knows it: from workers' reports, its own line, and the last answers. For who scales.

Loads are in workers: 1.5 is what one and a half can do at their best.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from router.accounting import Accounting
from router.placement.attempts import Attempts
from router.request import Request
from router.waiting_line import WaitingLine
from router.workers import DECODE, PREFILL, Membership, Worker


@dataclass(frozen=True)
class ClusterLoad:
    """At one moment."""

    at: float
    """time.monotonic()"""
    prefill_ready: int
    decode_ready: int
    """Workers that take requests."""
    prefill_busy_s: float
    """Seconds that prefill workers have computed so far, all together."""
    prefill_queue_s: float
    """Seconds that one of them would need for the prompts that wait."""
    decode_used: float
    """Share of KV blocks that are held, or of sequences that run, whichever is more; added up over workers. Blocks of requests
    whose prompt is not computed yet are left out: more decode workers would not help those."""
    decode_queued: float
    """Workers that the requests which wait for decode would fill."""
    ttft_s: float | None
    """95th percentile over the last answers, the wait for a decode worker left out; None of too few."""
    tpot_s: float | None
    """Likewise, time per output token."""


class PoolLoads:
    """Reads what others keep, and changes nothing. Event loop only."""

    def __init__(self, members: Membership, line: WaitingLine, attempts: Attempts, accounting: Accounting) -> None:
        self._members = members
        self._line = line
        self._attempts = attempts
        self._accounting = accounting
        self._grown = {PREFILL: _Grown(), DECODE: _Grown()}

    def read(self, window_s: float) -> ClusterLoad:
        """`window_s`: answers that ended so long ago still count; of those only that began when the pool had as many workers as
        now, for what a long answer has seen of a smaller pool says nothing of this one."""
        prefill, decode = self._members.pool(PREFILL), self._members.pool(DECODE)
        line = self._line.waiting()
        for_prefill = self._share_for_prefill(decode) if line else 0.0
        prompt_tokens = sum(len(request.spec.prompt) for request in line)
        now = time.monotonic()
        ttft_since, tpot_since = (
            self._grown[PREFILL].since(_ready(prefill), now),
            self._grown[DECODE].since(_ready(decode), now),
        )
        ttft_s, tpot_s = self._accounting.answers.percentiles(window_s, ttft_since, tpot_since)
        return ClusterLoad(
            at=now,
            prefill_ready=_ready(prefill),
            decode_ready=_ready(decode),
            prefill_busy_s=self._accounting.computed.read().get("prefill", 0.0),
            prefill_queue_s=_seconds(prefill, for_prefill * prompt_tokens + sum(one.load.queued_tokens for one in prefill)),
            decode_used=sum(map(_used, decode)),
            decode_queued=(1 - for_prefill) * _filled(decode, line) + sum(map(_queued_at, decode)),
            ttft_s=ttft_s,
            tpot_s=tpot_s,
        )

    def _share_for_prefill(self, decode: Sequence[Worker]) -> float:
        """Of the line, the share that more prefill workers would help: all of it while prefill is short. Where decode is, as much
        as blocks there are held by requests that wait for prefill themselves."""
        if not self._attempts.is_short_of_decode:
            return 1.0
        held = sum(worker.load.kv_blocks_used for worker in decode)
        return sum(worker.load.kv_blocks_in_prefill for worker in decode) / held if held else 0.0


@dataclass
class _Grown:
    """When a pool was last smaller."""

    ready: int | None = None
    at: float = -inf

    def since(self, ready: int, now: float) -> float:
        """It has so many workers now."""
        if self.ready is not None and ready > self.ready:
            self.at = now
        self.ready = ready
        return self.at


def _ready(workers: Sequence[Worker]) -> int:
    return sum(not worker.is_draining for worker in workers)


def _seconds(prefill: Sequence[Worker], tokens: float) -> float:
    """0 while no worker knows its speed: then none has computed for long."""
    speeds = [worker.load.prefill_tokens_per_s for worker in prefill if worker.load.prefill_tokens_per_s]
    return tokens * len(speeds) / sum(speeds) if speeds else 0.0


def _used(worker: Worker) -> float:
    load, hello = worker.load, worker.hello
    blocks = (load.kv_blocks_used - load.kv_blocks_in_prefill) / load.kv_blocks_total if load.kv_blocks_total else 0.0
    return max(0.0, blocks, load.running / hello.max_sequences if hello.max_sequences else 0.0)


def _filled(decode: Sequence[Worker], line: Sequence[Request]) -> float:
    """Workers like these that the requests would fill, by their blocks or by their number."""
    if not decode or not line:
        return 0.0
    hello = decode[0].hello
    tokens = hello.kv_blocks * hello.block_size
    by_tokens = sum(request.charge.tokens for request in line) / tokens if tokens else 0.0
    return max(by_tokens, len(line) / hello.max_sequences if hello.max_sequences else 0.0)


def _queued_at(worker: Worker) -> float:
    """Those that were sent there and wait for blocks, as large as the others of this router's there."""
    tokens = worker.hello.kv_blocks * worker.hello.block_size
    if not worker.load.waiting_for_blocks or not worker.in_flight or not tokens:
        return 0.0
    return worker.load.waiting_for_blocks * (worker.in_flight_tokens / worker.in_flight) / tokens
