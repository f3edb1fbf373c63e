"""One answer in the words of /v1/chat/completions."""

from collections.abc import Sequence

from protocol.outcomes import Outcome
from protocol.serval_pb2 import TokenLogprob
from router.openai.replies import Json
from router.request import Delta, Request, TokenInfo
from router.text.token_bytes import TokenBytes
from router.tool_calls.delta import ToolCall, ToolCallDelta, join_calls
from router.tool_calls.parser import Piece, ToolCallParser


class ChatChoice:
    """See router/openai/replies.py's Choice. `parser` finds tool calls in the answer; None: it is text alone."""

    def __init__(self, index: int, request: Request, token_bytes: TokenBytes, parser: ToolCallParser | None = None) -> None:
        self._index = index
        self._request = request
        self._token_bytes = token_bytes
        self._parser = parser
        self._has_opened = False

    def delta(self, delta: Delta) -> list[Json]:
        pieces: Sequence[Piece] = [delta.text] if self._parser is None else self._parser.push(delta.text)
        logprobs = self._logprobs(delta.logprobs)
        if not pieces and delta.logprobs:
            pieces = [""]  # the tokens are known, and what their text is part of is not
        # A token's logprobs go out once, with the first piece of its text.
        chunks = [self._chunk(_said(piece), None if index else logprobs) for index, piece in enumerate(pieces)]
        return [*self._opening(), *chunks]

    def end(self) -> list[Json]:
        rest = [self._chunk(_said(piece), None) for piece in self._parser.finish()] if self._parser is not None else []
        return [*self._opening(), *rest, self._chunk({}, None, self._finish_reason())]

    def whole(self, delta: Delta) -> Json:
        message: Json = {"role": "assistant", "content": delta.text, "refusal": None}
        if self._parser is not None:
            text, calls = join_calls([*self._parser.push(delta.text), *self._parser.finish()])
            message["content"] = text
            if calls:
                message |= {"content": text or None, "tool_calls": [_whole_call(call) for call in calls]}
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs(delta.logprobs),
            "finish_reason": self._finish_reason(),
        }

    def _opening(self) -> list[Json]:
        if self._has_opened:
            return []
        self._has_opened = True
        return [self._chunk({"role": "assistant", "content": "", "refusal": None}, None)]

    def _finish_reason(self) -> str:
        return finish_reason(self._request, called=self._parser is not None and self._parser.calls > 0)

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


def finish_reason(request: Request, called: bool = False) -> str:
    """OpenAI's word for how a successful answer ended; `called`: it has tool calls."""
    assert request.end is not None
    if request.end.outcome is not Outcome.STOP:
        return "length"
    return "tool_calls" if called else "stop"


def _said(piece: Piece) -> Json:
    return {"content": piece} if isinstance(piece, str) else {"tool_calls": [_call_delta(piece)]}


def _call_delta(delta: ToolCallDelta) -> Json:
    if not delta.id:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def _whole_call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
