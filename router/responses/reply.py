"""A response, whole or as the stream of events that ends with it. See router/openai/replies.py's Reply."""

import time
from collections.abc import Sequence
from typing import Any

import orjson

from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from router.answers import Answers, Piece
from router.calls import Call
from router.figures import CallFigures, figures_of
from router.openai.errors import error_of_request
from router.openai.replies import Json, usage_of
from router.request import Delta, Request, TokenInfo
from router.responses.items import OutputItems
from router.responses.requests import ResponsesRequest
from router.text.token_bytes import TokenBytes


class ResponsesReply:
    """Of the one answer that a call of this endpoint has."""

    ends_with_figures = True

    def __init__(self, asked: ResponsesRequest, call: Call, answers: Answers, token_bytes: TokenBytes) -> None:
        self.answers = answers
        self._request = answers.requests[0]
        self._token_bytes = token_bytes
        self._parser = call.tools.parser()
        self._wants_logprobs = asked.wants_logprobs
        self._events: list[bytes] = []
        self._number = 0
        self._has_opened = False
        self._response = _head(asked, f"resp_{self._request.request_id}", self._request.spec.sampling)
        self._items = OutputItems(self._response["id"], self._emit)

    @property
    def figures(self) -> CallFigures:
        return figures_of(self.answers, 1)

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        self._open()
        for piece in pieces:
            self._add(piece.delta)
        return self._take()

    def end(self) -> bytes:
        self._open()
        status = self._end()
        self._emit(f"response.{status}", response=self._response)
        return self._take()

    def failure(self, failed: Request) -> bytes:
        """What a stream says in place of its end when the call failed midway. Items that were not done stay as they are."""
        self._open()
        error = orjson.loads(error_of_request(failed)[1])["error"]
        self._response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": error["message"]},
            "output": self._items.output,
        }
        self._emit("response.failed", response=self._response)
        return self._take()

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        for delta in deltas:
            self._add(delta)
        self._end()
        return orjson.dumps(self._response)

    def _open(self) -> None:
        if not self._has_opened:
            self._has_opened = True
            self._emit("response.created", response=self._response)
            self._emit("response.in_progress", response=self._response)

    def _add(self, delta: Delta) -> None:
        if not delta:
            return
        text = [delta.text] if delta.text else []
        pieces = text if self._parser is None else self._parser.push(delta.text)
        self._items.add(pieces, [self._logprob(info) for info in delta.logprobs] if self._wants_logprobs else ())

    def _end(self) -> str:
        """Completes the response; what it is now."""
        if self._parser is not None:
            self._items.add(self._parser.finish())
        assert self._request.end is not None
        status = "completed" if self._request.end.outcome is Outcome.STOP else "incomplete"
        self._items.end(status)
        self._response |= {"status": status, "output": self._items.output, "usage": _usage(self.figures)}
        if status == "incomplete":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._response["completed_at"] = int(time.time())
        return status

    def _emit(self, kind: str, **fields: Any) -> None:
        if not self._has_opened:
            return  # nobody listens: the response is told as a whole
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        self._events.append(b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(content) + b"\n\n")

    def _take(self) -> bytes:
        events, self._events = self._events, []
        return b"".join(events)

    def _logprob(self, info: TokenInfo) -> Json:
        top = [self._token(each.token_id, each.logprob) for each in info.logprobs.top]
        return {**self._token(info.logprobs.chosen.token_id, info.logprobs.chosen.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> Json:
        text, data = self._token_bytes.of(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


def _head(asked: ResponsesRequest, response_id: str, sampling: SamplingParams) -> Json:
    """A response before there is any of its output: what was asked for, with the defaults that hold."""
    choice = asked.tool_choice or "auto"
    form = asked.text.format if asked.text is not None else None
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": form.model_dump(exclude_none=True) if form is not None else {"type": "text"}},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
    }


def _usage(figures: CallFigures) -> Json:
    """This endpoint's words for what the others call usage."""
    usage = usage_of(figures)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
        "serval": usage["serval"],
    }
