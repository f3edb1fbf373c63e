"""How the candidates for a request are compared. A policy only scores; `router/placement/placer.py` filters, predicts and picks.

The lowest score wins. Among equals: the worker that the request's session prefers (policies that predict), then the one that was
picked longest ago.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import ConfigError
from router.workers import Worker

Score = tuple[float, ...]

ANSWER_TOKENS = 64
"""A decode worker's speed counts for this many tokens of an answer, or fewer where fewer are asked for: how long an answer will
be nobody knows, and the first tokens are what everybody gets."""


@dataclass(frozen=True)
class Ask:
    """What a placement may know of the request."""

    prompt_tokens: int
    total_tokens: int
    """Prompt and longest possible answer."""
    hashes: Sequence[int] = ()
    """Short hashes of the prompt's full blocks, in order (protocol/block_hash.py)."""
    avoided: frozenset[int] = frozenset()
    """Incarnations that must not get it."""
    session: str = ""
    """Requests of one session prefer the same workers where all else is equal."""
    preferred: int | None = None
    """Incarnation of the decode worker that has the same prompt already: another answer to it (n > 1)."""

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer that a worker's speed is judged by."""
        return min(ANSWER_TOKENS, max(1, self.total_tokens - self.prompt_tokens))


@dataclass(frozen=True)
class Candidate:
    """One worker, and what is predicted for the request if it goes there. For a decode worker the prompt's part counts too:
    computed there, or by the best prefill worker."""

    worker: Worker
    cached_tokens: int
    """Of the prompt, that it holds already or is expected to."""
    queued_tokens: int
    """Prompt tokens that it has to compute before this one's."""
    fits: bool
    """It can begin at once: KV blocks and a place in the batch are free."""
    computes: bool
    """It would compute the prompt: a prefill worker, or a decode worker with a short rest."""
    ttft_s: float
    itl_s: float = 0.0
    transfer_s: float = 0.0

    def seconds(self, answer_tokens: int) -> float:
        """From now to that many tokens of the answer."""
        return self.ttft_s + self.transfer_s + answer_tokens * self.itl_s

    def misses(self, slo_ttft_s: float | None, slo_itl_s: float | None) -> bool:
        """Whether an objective would not be met there."""
        return (slo_ttft_s is not None and self.ttft_s > slo_ttft_s) or (slo_itl_s is not None and self.itl_s > slo_itl_s)


class Policy(Protocol):
    """`score` is pure and cheap: it runs once per worker and request. With `uses_predictions` a score is (does not fit, misses an
    objective, seconds)."""

    name: str
    uses_predictions: bool

    def score(self, ask: Ask, candidate: Candidate) -> Score: ...


class RoundRobin:
    """Every worker in turn."""

    name = "round_robin"
    uses_predictions = False

    def score(self, ask: Ask, candidate: Candidate) -> Score:
        return ()


class LeastLoaded:
    """The fewest requests: this router's own count, which is never stale, and other routers' by the last report. Then the
    fewest prompt tokens on their way, then the emptiest KV pool."""

    name = "least_loaded"
    uses_predictions = False

    def score(self, ask: Ask, candidate: Candidate) -> Score:
        worker = candidate.worker
        used = worker.load.kv_blocks_used / worker.load.kv_blocks_total if worker.load.kv_blocks_total else 0.0
        return (worker.requests, worker.in_flight_tokens, used)


class PrefixAware:
    """The least predicted time: what is cached need not be computed or moved, and a queue outweighs it when it is longer than
    what the cache saves, so a popular prefix spreads by itself. Who fits now goes before who must wait, and who meets the
    objectives before who misses one."""

    name = "prefix_aware"
    uses_predictions = True

    def __init__(self, slo_ttft_s: float | None = None, slo_itl_s: float | None = None) -> None:
        self._slo_ttft_s = slo_ttft_s
        self._slo_itl_s = slo_itl_s

    def score(self, ask: Ask, candidate: Candidate) -> Score:
        return (
            not candidate.fits,
            candidate.misses(self._slo_ttft_s, self._slo_itl_s),
            candidate.seconds(ask.answer_tokens),
        )


def policy_by_name(name: str, slo_ttft_s: float | None = None, slo_itl_s: float | None = None) -> Policy:
    """Raises ConfigError for a name that is none."""
    known: Iterable[Policy] = (PrefixAware(slo_ttft_s, slo_itl_s), RoundRobin(), LeastLoaded())
    policies = {policy.name: policy for policy in known}
    if name not in policies:
        raise ConfigError(f"policy: {name!r} is none of {', '.join(sorted(policies))}")
    return policies[name]


def eligible(ask: Ask, pool: Iterable[Worker]) -> list[Worker]:
    """The filter: workers that take new work and can hold this request."""
    return [worker for worker in pool if worker.takes(ask.total_tokens, ask.avoided)]
