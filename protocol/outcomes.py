"""The closed set of ways in which a request can end: every accepted request ends in exactly one. Also the metric label."""

from enum import StrEnum


class Outcome(StrEnum):
    STOP = "stop"
    """The model ended its answer (end-of-sequence, stop token or stop string)."""
    LENGTH = "length"
    """max_tokens or the context length was reached."""
    CANCELLED = "cancelled"
    """The client went away or asked to stop."""
    DEADLINE = "deadline"
    """The request's deadline passed."""
    INVALID = "invalid"
    """Refused at the door: the request is malformed or cannot be served. A retry cannot help."""
    UNAUTHENTICATED = "unauthenticated"
    """Refused at the door: no key, or one that is not known."""
    RATE_LIMITED = "rate_limited"
    """Refused at the door: the caller's own limit is reached. A retry after the time given can help."""
    OVERLOADED = "overloaded"
    """Refused: the cluster has no capacity now. A retry can help."""
    UNAVAILABLE = "unavailable"
    """No worker could take it, or the worker that had it is gone. A retry can help."""
    PREFILL_FAILED = "prefill_failed"
    """The prompt could not be computed anywhere."""
    TRANSFER_FAILED = "transfer_failed"
    """The KV cache could not be moved and verified, nor computed again."""
    POISON = "poison"
    """Two workers died on it, and on it alone: it is not tried again, and a retry would only do the same (router/losses.py)."""
    INTERNAL = "internal"
    """A bug of ours."""

    @classmethod
    def of(cls, word: str) -> "Outcome":
        """What another process said. A word that is none of ours is a bug on its side."""
        return cls(word) if word in set(cls) else cls.INTERNAL

    @property
    def is_success(self) -> bool:
        return self in (Outcome.STOP, Outcome.LENGTH)

    @property
    def is_retryable(self) -> bool:
        return self in (Outcome.OVERLOADED, Outcome.UNAVAILABLE, Outcome.PREFILL_FAILED, Outcome.TRANSFER_FAILED)
