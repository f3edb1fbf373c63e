"""Which workers take a request: filter, predict, score, pick; the pair in one synchronous decision without I/O.

`Placer.place` changes nothing. Whoever acts on a placement says so: `placed` when it was sent, `computed` when the prompt has been
computed (its first token came) or the request left its workers.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from protocol import cluster_pb2
from router.placement.policies import Ask, Candidate, Policy, Score, eligible
from router.placement.prefix_index import PrefixIndex
from router.workers import Worker

UNMEASURED_PREFILL_TOKENS_PER_S = 2000.0
UNMEASURED_STEP_S = 0.01
"""While no worker of a pool has computed anything lately. Only how much a token of the prompt, a token of the answer and a request
more weigh against each other follows from them."""


SAME_SECONDS, SAME_SHARE = 0.001, 0.005
"""Predictions that differ by less than either are equal: they are no better than that, and equals leave room for sessions and
turns."""


class Reason(StrEnum):
    """What decided the pick; the metric's label."""

    ONLY_ONE = "only_one"
    SIBLING = "sibling"
    """The worker that has the same prompt already (n > 1)."""
    CAPACITY = "capacity"
    """A worker that would have been faster has no room now."""
    SLO = "slo"
    """A worker that would have been faster for this request would miss an objective."""
    PREFIX = "prefix"
    """It has more of the prompt than others."""
    LOAD = "load"
    """It is the fastest, though it has no more of the prompt than others."""
    SESSION = "session"
    """Equals, and the session prefers this one."""
    TURN = "turn"
    """Equals, one after the other."""
    LOCAL = "local"
    """No prefill worker: the decode worker computes so short a rest by itself."""
    NONE = "none"
    """No prefill worker takes work: the decode worker has to compute the prompt."""


@dataclass(frozen=True)
class Placement:
    """Where a request goes. `prefill` is None when the decode worker is to compute the prompt; `standby` is then the prefill
    worker it may turn to after all, should it know less of the prompt than is believed here."""

    policy: str
    decode: Worker
    prefill: Worker | None
    standby: Worker | None
    reason: Reason
    prefill_reason: Reason
    uncached_tokens: int
    """Prompt tokens that have to be computed, as far as is known."""
    ttft_s: float
    """Predicted."""
    candidates: Mapping[str, Sequence[tuple[Candidate, Score]]]
    """By pool, as they were compared."""

    @property
    def computing(self) -> Worker:
        """The worker that computes the prompt."""
        return self.prefill or self.decode

    @property
    def explanation(self) -> dict[str, Any]:
        """The decision for people: JSON-ready, seconds and tokens."""
        chosen = {
            "decode": (self.decode, self.reason),
            "prefill": (self.prefill, self.prefill_reason),
        }
        pools = {
            pool: {
                "worker": worker.name if worker is not None else None,
                "reason": str(reason),
                "candidates": [_shown(candidate, score) for candidate, score in self.candidates[pool]],
            }
            for pool, (worker, reason) in chosen.items()
        }
        return {"policy": self.policy, **pools}


class Placer:
    """Decides with a policy over what the workers report, and keeps the view of their prefix caches that this needs."""

    def __init__(
        self, policy: Policy, index: PrefixIndex, expected_for_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`expected_for_s`: how long after its predicted first token a prompt is expected to show in its workers' caches."""
        self._policy = policy
        self._index = index
        self._expected_for_s = expected_for_s
        self._clock = clock

    @property
    def uses_predictions(self) -> bool:
        """Whether the policy weighs queues and caches against each other; only then does it make use of `Ask.hashes`."""
        return self._policy.uses_predictions

    # ---- the decision

    def place(self, ask: Ask, decode_pool: Iterable[Worker], prefill_pool: Iterable[Worker]) -> Placement | None:
        """None where no decode worker can take it. Changes nothing."""
        decoders, prefillers = eligible(ask, decode_pool), eligible(ask, prefill_pool)
        if not decoders:
            return None
        matched = self._index.matches(ask.hashes, [worker.incarnation for worker in (*decoders, *prefillers)], self._clock())
        prefill = self._pick(ask, _predict_prefill(ask, prefillers, matched))
        decode = self._pick(ask, _predict_decode(ask, decoders, matched, prefill.candidate if prefill else None))
        assert decode is not None
        if prefill is not None and prefill.candidate.worker.incarnation in decode.candidate.worker.load.avoided_prefill:
            others = [one for one in prefillers if one.incarnation not in decode.candidate.worker.load.avoided_prefill]
            prefill = self._pick(ask, _predict_prefill(ask, others, matched))
        best = prefill.candidate.worker if prefill else None
        computes = decode.candidate.computes
        computing = decode.candidate if computes or prefill is None else prefill.candidate
        return Placement(
            policy=self._policy.name,
            decode=decode.candidate.worker,
            prefill=None if computes else best,
            standby=best if computes else None,
            reason=decode.reason,
            prefill_reason=Reason.NONE if prefill is None else Reason.LOCAL if computes else prefill.reason,
            uncached_tokens=ask.prompt_tokens - computing.cached_tokens,
            ttft_s=computing.ttft_s,
            candidates={"decode": decode.scored, "prefill": prefill.scored if prefill else ()},
        )

    def _pick(self, ask: Ask, candidates: Sequence[Candidate]) -> "_Pick | None":
        if not candidates:
            return None
        scored = [(candidate, self._policy.score(ask, candidate)) for candidate in candidates]
        sibling = next((candidate for candidate in candidates if candidate.worker.incarnation == ask.preferred), None)
        if sibling is not None:
            return _Pick(sibling, Reason.SIBLING, scored)
        best = min(score for _, score in scored)
        equals = [candidate for candidate, score in scored if self._is_as_good(score, best)]
        session = ask.session if self._policy.uses_predictions else ""
        chosen = min(equals, key=lambda candidate: _rank_of_equal(session, candidate.worker))
        return _Pick(chosen, self._reason(chosen, best, scored, len(equals), session), scored)

    def _reason(
        self, chosen: Candidate, best: Score, scored: Sequence[tuple[Candidate, Score]], equals: int, session: str
    ) -> Reason:
        if len(scored) == 1:
            return Reason.ONLY_ONE
        if self._policy.uses_predictions:
            passed_over = [score for _, score in scored if score[2] < best[2]]
            if passed_over:
                return Reason.CAPACITY if any(score[0] > best[0] for score in passed_over) else Reason.SLO
            cached = [candidate.cached_tokens for candidate, _ in scored]
            if chosen.cached_tokens == max(cached) > min(cached):
                return Reason.PREFIX
        if equals == 1:
            return Reason.LOAD
        return Reason.SESSION if session else Reason.TURN

    def _is_as_good(self, score: Score, best: Score) -> bool:
        if not self._policy.uses_predictions:
            return score == best
        return score[:2] == best[:2] and score[2] - best[2] <= max(SAME_SECONDS, SAME_SHARE * best[2])

    # ---- what becomes of it

    def placed(self, placement: Placement, ask: Ask) -> None:
        """The request was sent: its workers will soon hold its prompt, and one of them has it to compute."""
        now = self._clock()
        until = now + 2 * placement.ttft_s + self._expected_for_s
        self._index.expect(placement.decode.incarnation, ask.hashes, now, until)
        if placement.prefill is not None:
            self._index.expect(placement.prefill.incarnation, ask.hashes, now, until)
        placement.computing.computing_tokens += placement.uncached_tokens

    def computed(self, placement: Placement) -> None:
        """The prompt is computed, or nobody waits for it any more. Once per `placed`."""
        placement.computing.computing_tokens -= placement.uncached_tokens

    def on_cache_change(self, worker: Worker, change: cluster_pb2.CacheChange) -> None:
        """A worker said what its prefix cache holds. One that has left may still be heard for a moment."""
        if worker.end_reason.done():
            return
        self._index.update(worker.incarnation, change)

    def on_worker_lost(self, worker: Worker) -> None:
        self._index.remove(worker.incarnation)

    @property
    def index_entries(self) -> int:
        return self._index.num_entries


@dataclass(frozen=True)
class _Pick:
    candidate: Candidate
    reason: Reason
    scored: Sequence[tuple[Candidate, Score]]


# ---- predictions


def _predict_prefill(ask: Ask, workers: Sequence[Worker], matched: Mapping[int, int]) -> list[Candidate]:
    usual = _usual_rate(workers)
    return [_computing(ask, worker, _cached_tokens(ask, worker, matched), usual) for worker in workers]


def _predict_decode(
    ask: Ask, workers: Sequence[Worker], matched: Mapping[int, int], prefill: Candidate | None
) -> list[Candidate]:
    """`prefill`: the best prefill worker; it does not depend on the decode worker, for all send what the latter lacks."""
    usual, usual_step_s = _usual_rate(workers), _usual_step_s(workers)
    candidates = []
    for worker in workers:
        cached = _cached_tokens(ask, worker, matched)
        rest = ask.prompt_tokens - cached
        computes = prefill is None or rest <= worker.load.local_prefill_max_tokens
        if computes or prefill is None:
            here = _computing(ask, worker, cached, usual)
            ttft_s, transfer_s = here.ttft_s, 0.0
        else:
            ttft_s, transfer_s = prefill.ttft_s, _transfer_s(worker, rest)
        candidates.append(
            Candidate(
                worker=worker,
                cached_tokens=cached,
                queued_tokens=worker.queued_tokens,
                fits=worker.has_room_for(ask.prompt_tokens),
                computes=computes,
                ttft_s=ttft_s,
                itl_s=worker.predicted_itl_s(usual_step_s),
                transfer_s=transfer_s,
            )
        )
    return candidates


def _computing(ask: Ask, worker: Worker, cached_tokens: int, usual_tokens_per_s: float) -> Candidate:
    rate = worker.load.prefill_tokens_per_s or usual_tokens_per_s
    tokens = worker.queued_tokens + ask.prompt_tokens - cached_tokens
    return Candidate(worker, cached_tokens, worker.queued_tokens, fits=True, computes=True, ttft_s=tokens / rate)


def _cached_tokens(ask: Ask, worker: Worker, matched: Mapping[int, int]) -> int:
    """At least the last token is always computed: its logits are not cached."""
    whole = matched.get(worker.incarnation, 0) * worker.hello.block_size
    return max(0, min(whole, ask.prompt_tokens - 1))


def _transfer_s(worker: Worker, tokens: int) -> float:
    """0 while nothing is known of the speed or the size."""
    speed = worker.load.transfer_bytes_per_s
    return tokens * worker.hello.kv_token_bytes / speed if speed else 0.0


def _usual_rate(workers: Sequence[Worker]) -> float:
    """For workers that have computed nothing lately: as fast as their neighbours."""
    known = [worker.load.prefill_tokens_per_s for worker in workers if worker.load.prefill_tokens_per_s]
    return sum(known) / len(known) if known else UNMEASURED_PREFILL_TOKENS_PER_S


def _usual_step_s(workers: Sequence[Worker]) -> float:
    known = [worker.step_times.mean_y for worker in workers if worker.step_times.weight]
    return sum(known) / len(known) if known else UNMEASURED_STEP_S


# ---- picking


def _rank_of_equal(session: str, worker: Worker) -> tuple[int, int]:
    return (-_affinity(session, worker.name) if session else 0, worker.last_pick)


def _affinity(session: str, worker: str) -> int:
    """Rendezvous hashing: every router prefers the same worker for a session without remembering any, and a worker that leaves
    or joins moves only the sessions that are its own (Thaler and Ravishankar, 1998)."""
    return int.from_bytes(blake2b(f"{session}\0{worker}".encode(), digest_size=8).digest(), "little")


def _shown(candidate: Candidate, score: Score) -> dict[str, Any]:
    return {
        "worker": candidate.worker.name,
        "cached_tokens": candidate.cached_tokens,
        "queued_tokens": candidate.queued_tokens,
        "fits": candidate.fits,
        "ttft_s": round(candidate.ttft_s, 6),
        "itl_s": round(candidate.itl_s, 6),
        "transfer_s": round(candidate.transfer_s, 6),
        "score": [float(part) for part in score],
    }
