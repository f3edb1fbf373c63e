"""Which worker takes a request: filter, score, pick; one synchronous decision without I/O.

A policy only scores. The lowest score wins; among equals the worker that was picked longest ago.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol.errors import ConfigError
from router.workers import Worker

Score = tuple[float, ...]


@dataclass(frozen=True)
class Ask:
    """What a policy may know of the request."""

    total_tokens: int
    """Prompt and longest possible answer."""
    avoided: frozenset[int] = field(default_factory=frozenset)
    """Incarnations that must not get it."""


class Policy(Protocol):
    """`score` is pure and cheap: it runs once per worker and request."""

    name: str

    def score(self, ask: Ask, worker: Worker) -> Score: ...


class RoundRobin:
    """Every worker in turn."""

    name = "round_robin"

    def score(self, ask: Ask, worker: Worker) -> Score:
        return ()


class LeastLoaded:
    """The fewest requests: this router's own count, which is never stale, and other routers' by the last report. Then the
    fewest prompt tokens on their way, then the emptiest KV pool."""

    name = "least_loaded"

    def score(self, ask: Ask, worker: Worker) -> Score:
        used = worker.load.kv_blocks_used / worker.load.kv_blocks_total if worker.load.kv_blocks_total else 0.0
        return (worker.in_flight + worker.load_elsewhere, worker.in_flight_tokens, used)


def policy_by_name(name: str) -> Policy:
    policies: dict[str, Policy] = {policy.name: policy for policy in (RoundRobin(), LeastLoaded())}
    if name not in policies:
        raise ConfigError(f"policy: {name!r} is none of {', '.join(sorted(policies))}")
    return policies[name]


def eligible(ask: Ask, pool: Iterable[Worker]) -> list[Worker]:
    """The filter: workers that take new work and can hold this request."""
    return [
        worker
        for worker in pool
        if not worker.is_draining and worker.incarnation not in ask.avoided and _holds(worker, ask.total_tokens)
    ]


def choose(policy: Policy, ask: Ask, pool: Sequence[Worker]) -> Worker | None:
    """The one worker, or None where the filter leaves none. Changes nothing."""
    candidates = eligible(ask, pool)
    return min(candidates, key=lambda worker: (policy.score(ask, worker), worker.last_pick), default=None)


def _holds(worker: Worker, tokens: int) -> bool:
    return worker.max_tokens is None or tokens <= worker.max_tokens
