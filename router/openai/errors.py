"""OpenAI's error bodies, and the HTTP status that each outcome has."""

import math

import orjson

from protocol.errors import InvalidRequest, ServalError
from protocol.outcomes import Outcome
from router.request import Request

STATUS = {
    Outcome.INVALID: 400,
    Outcome.UNAUTHENTICATED: 401,
    Outcome.RATE_LIMITED: 429,
    Outcome.OVERLOADED: 503,
    Outcome.UNAVAILABLE: 503,
    Outcome.DEADLINE: 504,
    Outcome.PREFILL_FAILED: 503,
    Outcome.TRANSFER_FAILED: 503,
    Outcome.POISON: 422,  # clients try again what fails with a 5xx
    Outcome.INTERNAL: 500,
    Outcome.CANCELLED: 499,
}
"""HTTP status by outcome, where no part of the answer has gone out."""

_ERROR_TYPE = {
    401: "authentication_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout_error",
}
RETRY_AFTER_S = 1
"""Where nothing better is known."""


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> bytes:
    kind = _ERROR_TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_of(error: ServalError) -> tuple[int, bytes]:
    """Status and body of a refusal."""
    status = STATUS.get(error.outcome, 500)
    return status, error_body(
        str(error), status, error.field if isinstance(error, InvalidRequest) else None, _code_of(error.outcome)
    )


def error_of_request(request: Request) -> tuple[int, bytes]:
    """Status and body of a request that ended without success."""
    assert request.end is not None
    outcome = request.end.outcome
    status = STATUS[outcome]
    message = request.end.message or f"the request ended: {outcome}"
    return status, error_body(message, status, request.end.field, _code_of(outcome))


def retry_after(retry_after_s: float | None) -> bytes:
    """The header's value, in whole seconds: a retry that comes as told is not too early."""
    return str(max(RETRY_AFTER_S, math.ceil(retry_after_s or 0))).encode()


def _code_of(outcome: Outcome) -> str:
    return "invalid_api_key" if outcome is Outcome.UNAUTHENTICATED else str(outcome)
