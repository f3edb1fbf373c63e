"""OpenAI's answer bodies: whole answers, chunks, logprobs, usage, errors.

Source: OpenAI's API reference; the `openai` client's types are what the tests hold these against.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import orjson

from protocol.errors import InvalidRequest, ServalError
from protocol.outcomes import Outcome
from protocol.serval_pb2 import TokenLogprob
from router.request import Delta, Request, TokenInfo
from router.token_bytes import TokenBytes

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"

STATUS = {
    Outcome.INVALID: 400,
    Outcome.UNAUTHENTICATED: 401,
    Outcome.RATE_LIMITED: 429,
    Outcome.OVERLOADED: 503,
    Outcome.UNAVAILABLE: 503,
    Outcome.DEADLINE: 504,
    Outcome.PREFILL_FAILED: 503,
    Outcome.TRANSFER_FAILED: 503,
    Outcome.INTERNAL: 500,
    Outcome.CANCELLED: 499,
}
"""HTTP status by outcome, where no part of the answer has gone out."""

_ERROR_TYPE = {400: "invalid_request_error", 429: "rate_limit_error", 503: "service_unavailable", 504: "timeout_error"}
RETRY_AFTER_S = 1
"""Where nothing better is known."""


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> bytes:
    kind = _ERROR_TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_of(error: ServalError) -> tuple[int, bytes]:
    """Status and body of a refusal."""
    status = STATUS.get(error.outcome, 500)
    return status, error_body(
        str(error), status, error.field if isinstance(error, InvalidRequest) else None, str(error.outcome)
    )


def error_of_request(request: Request) -> tuple[int, bytes]:
    """Status and body of a request that ended without success."""
    assert request.end is not None
    outcome = request.end.outcome
    status = STATUS[outcome]
    return status, error_body(request.end.message or f"the request ended: {outcome}", status, request.end.field, str(outcome))


def retry_after(retry_after_s: float | None) -> bytes:
    """The header's value, in whole seconds: a retry that comes as told is not too early."""
    return str(max(RETRY_AFTER_S, math.ceil(retry_after_s or 0))).encode()


def event(content: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


class AnswerFormat:
    """One answer in one endpoint's words. `begin` is sent before the first delta, `end` after the last."""

    def __init__(self, model: str, request: Request, token_bytes: TokenBytes, includes_usage: bool) -> None:
        self.request = request
        self._token_bytes = token_bytes
        self._includes_usage = includes_usage
        self._head: Json = {"created": int(time.time()), "model": model}

    def begin(self) -> bytes:
        return b""

    def delta(self, delta: Delta) -> bytes:
        raise NotImplementedError

    def end(self) -> bytes:
        """The finish reason, then usage if asked for, then [DONE]."""
        raise NotImplementedError

    def whole(self, answer: Delta) -> Json:
        raise NotImplementedError

    def failure(self) -> bytes:
        """What a stream says in place of its end when the request failed midway."""
        return b"data: " + error_of_request(self.request)[1] + b"\n\n"

    def _chunk(self, choice: Json) -> bytes:
        usage: Json = {"usage": None} if self._includes_usage else {}
        return event({**self._head, "choices": [choice], **usage})

    def _last(self) -> bytes:
        usage = event({**self._head, "choices": [], "usage": self._usage()}) if self._includes_usage else b""
        return usage + DONE

    def _finish_reason(self) -> str:
        assert self.request.end is not None
        return "stop" if self.request.end.outcome is Outcome.STOP else "length"

    def _usage(self) -> Json:
        prompt, answer = len(self.request.spec.prompt), len(self.request.output)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": self.request.cached_tokens},
        }


class ChatFormat(AnswerFormat):
    def __init__(self, model: str, request: Request, token_bytes: TokenBytes, includes_usage: bool) -> None:
        super().__init__(model, request, token_bytes, includes_usage)
        self._head = {"id": f"chatcmpl-{request.request_id}", "object": "chat.completion.chunk", **self._head}

    def begin(self) -> bytes:
        return self._choice({"role": "assistant", "content": "", "refusal": None}, None)

    def delta(self, delta: Delta) -> bytes:
        return self._choice({"content": delta.text}, self._logprobs(delta.logprobs))

    def end(self) -> bytes:
        return self._choice({}, None, self._finish_reason()) + self._last()

    def whole(self, answer: Delta) -> Json:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.logprobs),
            "finish_reason": self._finish_reason(),
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def _choice(self, delta: Json, logprobs: Json | None, finish_reason: str | None = None) -> bytes:
        return self._chunk({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})

    def _logprobs(self, tokens: Sequence[TokenInfo]) -> Json | None:
        if self.request.spec.sampling.logprobs is None:
            return None
        content = [
            {**self._one(info.logprobs.chosen), "top_logprobs": [self._one(top) for top in info.logprobs.top]}
            for info in tokens
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: TokenLogprob) -> Json:
        text, data = self._token_bytes.of(token.token_id)
        return {"token": text, "logprob": token.logprob, "bytes": list(data)}


class CompletionFormat(AnswerFormat):
    def __init__(self, model: str, request: Request, token_bytes: TokenBytes, includes_usage: bool) -> None:
        super().__init__(model, request, token_bytes, includes_usage)
        self._head = {"id": f"cmpl-{request.request_id}", "object": "text_completion", **self._head}

    def delta(self, delta: Delta) -> bytes:
        return self._chunk(self._choice(delta, None))

    def end(self) -> bytes:
        return self._chunk(self._choice(Delta(), self._finish_reason())) + self._last()

    def whole(self, answer: Delta) -> Json:
        return {**self._head, "choices": [self._choice(answer, self._finish_reason())], "usage": self._usage()}

    def _choice(self, delta: Delta, finish_reason: str | None) -> Json:
        return {"index": 0, "text": delta.text, "logprobs": self._logprobs(delta.logprobs), "finish_reason": finish_reason}

    def _logprobs(self, tokens: Sequence[TokenInfo]) -> Json | None:
        if self.request.spec.sampling.logprobs is None or not tokens:
            return None
        return {
            "text_offset": [info.text_offset for info in tokens],
            "token_logprobs": [info.logprobs.chosen.logprob for info in tokens],
            "tokens": [self._text(info.logprobs.chosen) for info in tokens],
            "top_logprobs": [{self._text(top): top.logprob for top in info.logprobs.top} for info in tokens],
        }

    def _text(self, token: TokenLogprob) -> str:
        return self._token_bytes.of(token.token_id)[0]
