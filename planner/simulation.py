"""A small queueing simulation of both pools under a trace: what readers see, and what it costs, with pools that scale or stay.

As in Serval a request first reserves KV blocks on a decode replica, then its prompt is computed by one prefill replica, then it
decodes with all others of its decode replica. Nothing fails, transfers take no time, and a prompt is computed whole.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

from planner.pool_scaling import PoolSignal
from planner.scaling import Decision, Signals, decide, start
from planner.scaling_config import ScalingConfig
from planner.simulated_pools import DecodeReplica, PrefillReplica, SimulatedPool, SimulatedRequest, Speed
from planner.trace import Arrival

ARRIVAL, PROMPT_DONE, ANSWER_DONE, READY, DECISION = range(5)


@dataclass(frozen=True)
class Record:
    """One decision of a simulation, with what it was decided on."""

    time_s: float
    signals: Signals
    decision: Decision


@dataclass(frozen=True)
class Outcome:
    """What became of a trace."""

    requests: list[SimulatedRequest]
    prefill_replica_s: float
    decode_replica_s: float
    records: list[Record]

    def missed(self, config: ScalingConfig) -> int:
        """Requests that did not keep both SLOs."""
        return sum(
            one.first_token - one.arrived > config.slo_ttft_s or one.tpot_s * config.slo_tokens_per_s > 1
            for one in self.requests
        )

    def attainment(self, config: ScalingConfig) -> float:
        """Share of those that did."""
        return 1 - self.missed(config) / len(self.requests)

    def gpu_hours(self, config: ScalingConfig) -> float:
        return (self.prefill_replica_s * config.prefill.gpus + self.decode_replica_s * config.decode.gpus) / 3600


def simulate(
    arrivals: Iterable[Arrival], speed: Speed, config: ScalingConfig, prefill: int, decode: int, *, scale: bool
) -> Outcome:
    """Begins with so many replicas; `scale`: decides once per `config.period_s`. Ends with the last answer. A request that fits
    on no decode replica is an error of the caller's."""
    simulation = _Simulation(speed, config, prefill, decode)
    return simulation.run(arrivals, scale)


class _Simulation:
    def __init__(self, speed: Speed, config: ScalingConfig, prefill: int, decode: int) -> None:
        self._speed, self._config = speed, config
        self._prefill = SimulatedPool(PrefillReplica, prefill)
        self._decode = SimulatedPool(DecodeReplica, decode)
        self._memory = start(config, prefill, decode)
        self._events: list[tuple[float, int, int, Any]] = []
        self._order = count()
        self._line: deque[SimulatedRequest] = deque()
        """Waiting for KV blocks, first come first served."""
        self._prompts: deque[SimulatedRequest] = deque()
        self._owner: dict[SimulatedRequest, DecodeReplica] = {}
        self._open_requests = 0
        self._period = _Period()
        self._records: list[Record] = []

    def run(self, arrivals: Iterable[Arrival], scale: bool) -> Outcome:
        requests = [SimulatedRequest(one.time_s, one.isl, one.osl) for one in arrivals]
        assert all(one.kv_tokens <= self._speed.kv_tokens for one in requests), "a request fits on no replica"
        coming = iter(requests)
        self._expect_arrival(coming)
        if scale:
            self._push(self._config.period_s, DECISION, None)
        now, self._open_requests = 0.0, len(requests)
        while self._open_requests:
            now, _, kind, what = heapq.heappop(self._events)
            if kind == ARRIVAL:
                self._line.append(what)
                self._expect_arrival(coming)
                self._admit(now)
            elif kind == PROMPT_DONE:
                self._prompt_done(now, what)
            elif kind == ANSWER_DONE:
                self._answers_done(now, *what)
            elif kind == READY:
                self._admit(now)
                self._start_prompts(now)
            else:
                self._decide(now)
                self._push(now + self._config.period_s, DECISION, None)
        return Outcome(requests, self._prefill.paid_s(now), self._decode.paid_s(now), self._records)

    def _expect_arrival(self, coming: Any) -> None:
        if (request := next(coming, None)) is not None:
            self._push(request.arrived, ARRIVAL, request)

    def _push(self, time_s: float, kind: int, what: Any) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), kind, what))

    def _admit(self, now: float) -> None:
        while self._line:
            replicas = self._decode.open(now)
            freest = min(replicas, key=lambda one: one.held, default=None)
            if freest is None or freest.held + self._line[0].kv_tokens > self._speed.kv_tokens:
                return
            request = self._line.popleft()
            request.admitted = now
            freest.held += request.kv_tokens
            freest.owners += 1
            self._owner[request] = freest
            self._prompts.append(request)
            self._start_prompts(now)

    def _start_prompts(self, now: float) -> None:
        if not self._prompts:
            return
        for replica in self._prefill.open(now):
            if replica.request is None and self._prompts:
                replica.request, replica.busy_since = self._prompts.popleft(), now
                self._push(now + replica.request.isl / self._speed.prompt_tokens_per_s, PROMPT_DONE, replica)

    def _prompt_done(self, now: float, replica: PrefillReplica) -> None:
        request, replica.request = replica.request, None
        assert request is not None, "a prompt ends once"
        request.first_token = now
        self._period.prompt_done(request, now - max(replica.busy_since, self._period.began))
        self._prefill.end_drained(now)
        self._start_prompts(now)
        owner = self._owner[request]
        owner.advance(now, self._speed)
        heapq.heappush(owner.active, (owner.clock + request.osl - 1, next(self._order), request))
        self._expect_end(owner)

    def _expect_end(self, replica: DecodeReplica) -> None:
        """Only the last event that was pushed for a replica counts: its speed has changed since those before."""
        replica.version += 1
        if replica.active:
            self._push(replica.next_end(self._speed), ANSWER_DONE, (replica, replica.version))

    def _answers_done(self, now: float, replica: DecodeReplica, version: int) -> None:
        if version != replica.version:
            return
        replica.advance(now, self._speed)
        while replica.active and replica.active[0][0] <= replica.clock + 1e-6:
            _, _, request = heapq.heappop(replica.active)
            request.ended = now
            replica.held -= request.kv_tokens
            replica.owners -= 1
            del self._owner[request]
            self._open_requests -= 1
            self._period.answer_done(request)
        self._expect_end(replica)
        self._decode.end_drained(now)
        self._admit(now)

    def _decide(self, now: float) -> None:
        signals = Signals(self._prefill_signal(now), self._decode_signal(now))
        decision = decide(self._config, self._memory, signals)
        self._memory = decision.memory
        self._records.append(Record(now, signals, decision))
        for pool, desired in ((self._prefill, decision.prefill.desired), (self._decode, decision.decode.desired)):
            pool.resize(now, desired, self._speed.start_s)
        self._push(now + self._speed.start_s, READY, None)
        self._push(now, READY, None)  # one that drained may be open again
        self._period = _Period(now)

    def _prefill_signal(self, now: float) -> PoolSignal:
        length = now - self._period.began
        working = (one for one in self._prefill.replicas if one.request is not None)
        busy_s = self._period.busy_s + sum(now - max(one.busy_since, self._period.began) for one in working)
        waiting = sum(one.isl for one in self._prompts) + self._line_for_prefill() * sum(one.isl for one in self._line)
        waiting_s = waiting / self._speed.prompt_tokens_per_s
        ready = len(self._prefill.open(now))
        return PoolSignal(ready, busy_s / length, waiting_s / length, _p95(self._period.prompt_s, self._config.slo_ttft_s))

    def _decode_signal(self, now: float) -> PoolSignal:
        """Blocks of requests that wait for prefill are prefill's load, and so are requests in the line that wait for these: more
        decode replicas would serve neither."""
        held = sum(one.held for one in self._decode.replicas) - sum(one.kv_tokens for one in self._prompts)
        line = (1 - self._line_for_prefill()) * sum(one.kv_tokens for one in self._line)
        error = _p95(self._period.tpot_s, 1 / self._config.slo_tokens_per_s)
        kv_tokens = self._speed.kv_tokens
        return PoolSignal(len(self._decode.open(now)), held / kv_tokens, line / kv_tokens, error)

    def _line_for_prefill(self) -> float:
        """The share of decode's held blocks that wait for prefill."""
        held = sum(one.held for one in self._decode.replicas)
        return sum(one.kv_tokens for one in self._prompts) / held if held else 0.0


class _Period:
    """What ended since the last decision."""

    def __init__(self, began: float = 0.0) -> None:
        self.began = began
        self.busy_s = 0.0
        self.prompt_s: list[float] = []
        self.tpot_s: list[float] = []

    def prompt_done(self, request: SimulatedRequest, busy_s: float) -> None:
        self.busy_s += busy_s
        self.prompt_s.append(request.first_token - request.admitted)

    def answer_done(self, request: SimulatedRequest) -> None:
        self.tpot_s.append(request.tpot_s)


def _p95(values: list[float], wanted: float) -> float | None:
    """Over what is wanted; None of too few to have a 95th percentile."""
    if len(values) < 20:
        return None
    return sorted(values)[int(0.95 * (len(values) - 1))] / wanted
