"""Whether a request that comes now is refused at once, because it would wait too long. Pure decisions.

The wait is predicted from who would go before it and the pace at which places came free lately. Who is refused in milliseconds can
ask elsewhere; who waits in vain has lost that time, and kept others waiting. The rule errs for letting in: while nobody waits, or
the pace is not known, nothing is refused.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import Overloaded

LONGEST_RETRY_S = 60.0
"""What lies further away is not known."""


class ShedReason(StrEnum):
    """What said that there is no capacity; a metric label."""

    PREDICTED_WAIT = "predicted_wait"
    """Refused at the door: it would wait longer than may be waited here."""
    DEADLINE = "deadline"
    """Refused at the door: it would wait longer than its own deadline allows."""
    MAX_WAITING = "max_waiting"
    """Refused at the door: the line is full."""
    MAX_OPEN_REQUESTS = "max_open_requests"
    """Refused at the door: no more are kept open."""
    DISPLACED = "displaced"
    """It was accepted, and made way in a full line for a tenant that has less there."""
    QUEUE_TIMEOUT = "queue_timeout"
    """It was accepted, and has waited too long: the prediction was wrong, or others went before it."""


class Shed(Overloaded):
    """A request refused at the door."""

    def __init__(self, reason: ShedReason, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Prospect:
    """What one more request would meet in the line. Nobody waiting: `waiting` is 0, whatever the workers do."""

    waiting: int
    before: int
    """Of those that wait, who would go before it."""
    places_per_second: float | None
    """None: not known."""

    @property
    def wait_s(self) -> float | None:
        """Until its turn comes; None where nothing can be said."""
        if not self.waiting:
            return 0.0
        return (self.before + 1) / self.places_per_second if self.places_per_second else None


def shed(prospect: Prospect, longest_wait_s: float, left_s: float) -> Shed | None:
    """The refusal, or None: let in. `longest_wait_s`: what may be waited here. `left_s`: until the request's own deadline."""
    wait_s = prospect.wait_s
    if wait_s is None or wait_s <= min(longest_wait_s, left_s):
        return None
    retry_after_s = min(LONGEST_RETRY_S, wait_s)
    if left_s < longest_wait_s:
        message = (
            f"a worker would have room in about {wait_s:.1f} s, and the deadline is in {left_s:.1f} s; a later retry can help"
        )
        return Shed(ShedReason.DEADLINE, message, retry_after_s)
    message = (
        f"a worker would have room in about {wait_s:.1f} s, and {longest_wait_s:g} s may be waited (max_predicted_wait_s); "
        "a later retry can help"
    )
    return Shed(ShedReason.PREDICTED_WAIT, message, retry_after_s)
