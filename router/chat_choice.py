"""One answer in the words of /v1/chat/completions."""

from collections.abc import Sequence

from protocol.outcomes import Outcome
from protocol.serval_pb2 import TokenLogprob
from router.openai_answers import Json
from router.request import Delta, Request, TokenInfo
from router.token_bytes import TokenBytes


class ChatChoice:
    """See router/openai_answers.py's Choice."""

    def __init__(self, index: int, request: Request, token_bytes: TokenBytes) -> None:
        self._index = index
        self._request = request
        self._token_bytes = token_bytes
        self._has_opened = False

    def delta(self, delta: Delta) -> list[Json]:
        return [*self._opening(), self._chunk({"content": delta.text}, self._logprobs(delta.logprobs))]

    def end(self) -> list[Json]:
        return [*self._opening(), self._chunk({}, None, finish_reason(self._request))]

    def whole(self, delta: Delta) -> Json:
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(delta.logprobs),
            "finish_reason": finish_reason(self._request),
        }

    def _opening(self) -> list[Json]:
        if self._has_opened:
            return []
        self._has_opened = True
        return [self._chunk({"role": "assistant", "content": "", "refusal": None}, None)]

    def _chunk(self, delta: Json, logprobs: Json | None, reason: str | None = None) -> Json:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[TokenInfo]) -> Json | None:
        if self._request.spec.sampling.logprobs is None:
            return None
        content = [
            {**self._one(info.logprobs.chosen), "top_logprobs": [self._one(top) for top in info.logprobs.top]}
            for info in tokens
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: TokenLogprob) -> Json:
        text, data = self._token_bytes.of(token.token_id)
        return {"token": text, "logprob": token.logprob, "bytes": list(data)}


def finish_reason(request: Request) -> str:
    """OpenAI's word for how a successful answer ended."""
    assert request.end is not None
    return "stop" if request.end.outcome is Outcome.STOP else "length"
