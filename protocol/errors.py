"""Errors of the world, not of our code. Each says whether a retry can help and how the request it concerns ends."""

from protocol.outcomes import Outcome


class ServalError(Exception):
    """Base. `retryable`: the same request may succeed later or elsewhere. `outcome`: how the request ends. `retry_after_s`: when
    a retry is likely to be accepted, where that is known."""

    outcome = Outcome.INTERNAL
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        return self.outcome.is_retryable


class InvalidRequest(ServalError):
    """The request can never be served as it is. `field` names what to change."""

    outcome = Outcome.INVALID

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Unauthenticated(ServalError):
    """The caller did not show a key, or one that is not known. The message never holds the key."""

    outcome = Outcome.UNAUTHENTICATED


class RateLimited(ServalError):
    """The caller's own limit is reached; the cluster may have room."""

    outcome = Outcome.RATE_LIMITED

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(ServalError):
    """The cluster has no capacity now."""

    outcome = Outcome.OVERLOADED


class Unavailable(ServalError):
    """No worker can take the request, or the one that had it is gone."""

    outcome = Outcome.UNAVAILABLE


class PrefillFailed(ServalError):
    outcome = Outcome.PREFILL_FAILED


class TransferFailed(ServalError):
    """KV could not be moved or verified."""

    outcome = Outcome.TRANSFER_FAILED


class TransferAborted(TransferFailed):
    """The receiver asked for the end: its request was cancelled, or goes on without the transfer."""


class PeerGone(TransferFailed):
    """The transport says that the peer no longer exists."""


class LeaseExpired(TransferFailed):
    """The right to write into a landing slot has ended."""


class DeadlineExceeded(ServalError):
    outcome = Outcome.DEADLINE


class ConfigError(ServalError):
    """A wrong setting; the message is one line and names the field."""

    outcome = Outcome.INVALID
