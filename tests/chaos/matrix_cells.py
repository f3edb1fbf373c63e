"""The matrix: which process is hit, in which state of a request, by what. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.hold import THIRDS, Point, layers_at

LAYERS = 6
"""Of the model, so that thirds are whole."""


class Victim(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    ROUTER = "router"


class State(StrEnum):
    """Of the request, when the fault comes."""

    QUEUED = "queued"
    """It waits its turn at the process that is hit: in the router's line, at decode before its reservation, at prefill before its
    first chunk."""
    RESERVED = "reserved"
    FIRST_THIRD = "first third sent"
    SECOND_THIRD = "second third sent"
    LAST_THIRD = "last third sent"
    FIRST_TOKEN = "first token out"
    DECODING = "decoding"
    DRAINING = "draining"
    """The process that is hit was told by SIGTERM to end, and still has the request."""


class Fault(StrEnum):
    KILL = "SIGKILL"
    STOP = "SIGSTOP 10 s"
    TERM = "SIGTERM"
    NETWORK = "network 10 s"


STOP_S = 10.0
"""How long a process stands still, or a cable is out."""

_POINTS = {
    State.RESERVED: Point.RESERVED,
    State.FIRST_THIRD: Point.FIRST_THIRD,
    State.SECOND_THIRD: Point.SECOND_THIRD,
    State.LAST_THIRD: Point.LAST_THIRD,
    State.FIRST_TOKEN: Point.FIRST_TOKEN,
    State.DECODING: Point.DECODING,
}
_QUEUES = {Victim.PREFILL: Point.PREFILL_QUEUED, Victim.DECODE: Point.DECODE_QUEUED}

_FACTS: Mapping[Point, Mapping[str, Any]] = {
    Point.DECODE_QUEUED: {"state": "queued", "kv_blocks": 0, "has_landing_slot": False},
    Point.RESERVED: {"state": "reserved", "has_landing_slot": True},
    Point.PREFILL_QUEUED: {"state": "queued", "layers_sent": 0},
    **{third: {"state": "computing", "layers_sent": layers_at(third, LAYERS)} for third in THIRDS},
    Point.FIRST_TOKEN: {"state": "sending", "layers_sent": layers_at(Point.SECOND_THIRD, LAYERS)},
    Point.DECODING: {"state": "decoding"},
}
"""What a worker must say of a request that stays there: the lifecycle's word (protocol/lifecycle.py), and what it holds or sent."""


@dataclass(frozen=True)
class Cell:
    victim: Victim
    state: State
    fault: Fault

    def __str__(self) -> str:
        return f"{self.victim} x {self.state} x {self.fault}"

    @property
    def waits_in_router(self) -> bool:
        """No worker has room, so nobody holds the request but the router's own line."""
        return self.victim is Victim.ROUTER and self.state is State.QUEUED

    @property
    def point(self) -> Point:
        """Where requests are held. In the router's line they are by others, which decode slowly."""
        if self.state is State.QUEUED:
            return _QUEUES.get(self.victim, Point.DECODING)
        if self.state is State.DRAINING:
            return Point.SECOND_THIRD if self.victim is Victim.PREFILL else Point.DECODING
        return _POINTS[self.state]

    def is_there(self, facts: Mapping[str, Any]) -> bool:
        """Whether a worker's words on a request say that it is in this cell's state."""
        return all(facts.get(name) == value for name, value in _FACTS[self.point].items())

    def tokens_fit(self, tokens: int) -> bool:
        """Whether a client in this cell's state can have got so many messages with tokens."""
        if self.waits_in_router:
            return tokens == 0
        if self.point is Point.DECODING:
            return tokens >= 2
        return tokens == (1 if self.point is Point.FIRST_TOKEN else 0)

    @property
    def ends_process(self) -> bool:
        """The process that was hit ends, and another takes its place."""
        return self.fault in (Fault.KILL, Fault.TERM) or self.state is State.DRAINING


def cells() -> Iterator[Cell]:
    """All of them: {prefill, decode, router} x 8 states x 4 faults."""
    for fault in (Fault.STOP, Fault.NETWORK, Fault.TERM, Fault.KILL):
        for victim in Victim:
            for state in State:
                yield Cell(victim, state, fault)
