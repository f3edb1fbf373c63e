"""Both pools of a simulated cluster: replicas that start, work, drain and end. Time is a number that the simulation hands in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

NEVER = float("inf")


@dataclass(frozen=True)
class Speed:
    """What one replica of each pool can do; from a plan or from measurement."""

    prompt_tokens_per_s: float
    step_s: float
    """A decode step with a single request."""
    step_s_per_request: float
    """And what each further one adds."""
    kv_tokens: int
    """That fit into one decode replica."""
    start_s: float
    """From the decision to a replica that takes requests."""

    def step(self, requests: int) -> float:
        return self.step_s + self.step_s_per_request * (requests - 1)


@dataclass(eq=False)
class SimulatedRequest:
    """One request on its way; times are NaN until they come."""

    arrived: float
    isl: int
    osl: int
    admitted: float = float("nan")
    first_token: float = float("nan")
    ended: float = float("nan")

    @property
    def kv_tokens(self) -> int:
        return self.isl + self.osl

    @property
    def tpot_s(self) -> float:
        """The first token apart; 0 for an answer of one."""
        return (self.ended - self.first_token) / max(1, self.osl - 1)


@dataclass(eq=False)
class Replica(ABC):
    """Of either pool."""

    ready_at: float
    draining: bool = False

    @property
    @abstractmethod
    def load(self) -> int:
        """Requests that it has."""


@dataclass(eq=False)
class PrefillReplica(Replica):
    """Computes one prompt at a time."""

    request: SimulatedRequest | None = None
    busy_since: float = 0.0

    @property
    def load(self) -> int:
        return int(self.request is not None)


@dataclass(eq=False)
class DecodeReplica(Replica):
    """All requests get a token per step. `clock` counts steps: a request ends at one reading of it, whoever comes and goes."""

    clock: float = 0.0
    updated: float = 0.0
    version: int = 0
    """Of what is expected to end next."""
    held: int = 0
    """KV tokens reserved, for requests in prefill too."""
    owners: int = 0
    """Requests that hold some."""
    active: list[tuple[float, int, SimulatedRequest]] = field(default_factory=list)
    """A heap, by the reading of the clock at which each ends."""

    @property
    def load(self) -> int:
        return self.owners

    def advance(self, now: float, speed: Speed) -> None:
        if self.active:
            self.clock += (now - self.updated) / speed.step(len(self.active))
        self.updated = now

    def next_end(self, speed: Speed) -> float:
        if not self.active:
            return NEVER
        return self.updated + max(0.0, self.active[0][0] - self.clock) * speed.step(len(self.active))


AnyReplica = TypeVar("AnyReplica", bound=Replica)


class SimulatedPool(Generic[AnyReplica]):
    """Replicas of one kind: as many as were asked for, and those that still drain. Counts how long they were paid for."""

    def __init__(self, make: Callable[[float], AnyReplica], replicas: int) -> None:
        self._make = make
        self.replicas = [make(0.0) for _ in range(replicas)]
        self._paid_until, self._paid_s = 0.0, 0.0

    def open(self, now: float) -> list[AnyReplica]:
        """Those that take requests."""
        return [one for one in self.replicas if one.ready_at <= now and not one.draining]

    def resize(self, now: float, desired: int, start_s: float) -> None:
        """More: those that drain are kept first. Fewer: those that have not started go first, then those with the least to do."""
        self._pay(now)
        wanted = [one for one in self.replicas if not one.draining]
        for one in [one for one in self.replicas if one.draining][: max(0, desired - len(wanted))]:
            one.draining = False
            wanted.append(one)
        self.replicas += [self._make(now + start_s) for _ in range(desired - len(wanted))]
        spare = sorted(wanted, key=lambda one: (one.ready_at <= now, one.load))[: max(0, len(wanted) - desired)]
        for one in spare:
            one.draining = True
        self.end_drained(now)

    def end_drained(self, now: float) -> None:
        if any(one.draining and not one.load for one in self.replicas):
            self._pay(now)
            self.replicas = [one for one in self.replicas if one.load or not one.draining]

    def paid_s(self, now: float) -> float:
        """Replica seconds up to now, starting and draining ones included."""
        self._pay(now)
        return self._paid_s

    def _pay(self, now: float) -> None:
        self._paid_s += len(self.replicas) * (now - self._paid_until)
        self._paid_until = now
