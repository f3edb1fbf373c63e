"""One streamed completion over HTTP, with the time of every event.

The client speaks OpenAI's /v1/completions with two widely understood additions: `ignore_eos`, so that an answer has the length
that was asked for, and `stream_options.include_usage`, so that tokens are counted by the server and not guessed from events.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from benchmarks.http_stream import OPEN, Access, ProtocolError, Refused, post

Prompt = list[int] | str
DONE = b"[DONE]"


@dataclass(frozen=True)
class CompletionRequest:
    """Of a fixed length; greedy unless it has a temperature."""

    model: str
    prompt: Prompt
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass
class Answer:
    """What came back and when. Times are `time.perf_counter()` seconds; `due_s` is when the request should have been sent: all
    latencies count from there, so a client or server that falls behind its schedule does not look faster for it."""

    due_s: float
    wanted_tokens: int
    event_s: list[float] = field(default_factory=list)
    """When each event with tokens arrived. A server may put several tokens into one."""
    ended_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    """None for a complete answer; else a short kind, the same for the same cause, fit for counting."""

    @property
    def time_to_first_token_s(self) -> float:
        return self.event_s[0] - self.due_s

    @property
    def end_to_end_s(self) -> float:
        return (self.ended_s if self.ended_s is not None else self.event_s[-1]) - self.due_s

    @property
    def between_events_s(self) -> list[float]:
        return [after - before for before, after in zip(self.event_s, self.event_s[1:], strict=False)]

    @property
    def tokens_per_event(self) -> float:
        return self.completion_tokens / len(self.event_s)

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self.event_s[-1] - self.event_s[0]

    @property
    def tokens_per_second(self) -> float | None:
        """The speed at which this user's answer grew after its first token. None where there was nothing to measure."""
        tokens = self.completion_tokens - self.tokens_per_event
        return tokens / self.decode_s if len(self.event_s) > 1 and self.decode_s > 0 else None


class EventStream:
    """Cuts a byte stream of server-sent events into the data of each event (WHATWG HTML, 9.2.6; one `data` line per event,
    as OpenAI sends it)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class StreamError(Exception):
    """The server ended the answer with an error event."""


async def complete(
    url: str, request: CompletionRequest, timeout_s: float, due_s: float | None = None, access: Access = OPEN
) -> Answer:
    """Sends `request` to the server at `url` and reads the answer to its end. Never raises for what the server or the network
    does: `Answer.error` says it. `timeout_s` covers the whole answer. Cancellation goes on."""
    answer = Answer(due_s=time.perf_counter() if due_s is None else due_s, wanted_tokens=request.max_tokens)
    try:
        async with asyncio.timeout(timeout_s):
            await _read(url, request, answer, access)
        answer.error = _incomplete(answer)
    except TimeoutError:
        answer.error = "timeout"
    except Refused as refusal:
        answer.error = f"HTTP {refusal.status}: {_error_name(refusal)}"
    except (OSError, asyncio.IncompleteReadError, ProtocolError) as error:
        answer.error = f"connection: {type(error).__name__}"
    except StreamError as error:
        answer.error = f"error event: {error}"
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        answer.error = f"malformed event: {type(error).__name__}"
    return answer


async def _read(url: str, request: CompletionRequest, answer: Answer, access: Access) -> None:
    stream = EventStream()
    async with post(url, "/v1/completions", orjson.dumps(request.body()), access) as pieces:
        async for piece in pieces:
            now_s = time.perf_counter()
            for data in stream.feed(piece):
                if data == DONE:
                    answer.ended_s = now_s
                else:
                    _take(answer, orjson.loads(data), now_s)


def _take(answer: Answer, event: dict[str, Any], now_s: float) -> None:
    if error := event.get("error"):
        raise StreamError(error.get("code") or error.get("type") or "unnamed")
    if usage := event.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.completion_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in event.get("choices", ()):
        reason = choice.get("finish_reason")
        # An event that only closes the answer brings no token; others may bring one whose text is still to come.
        if choice.get("text") or reason is None:
            answer.event_s.append(now_s)
        answer.finish_reason = reason or answer.finish_reason


def _incomplete(answer: Answer) -> str | None:
    if answer.ended_s is None or answer.finish_reason is None:
        return "cut: the stream ended without its end"
    if not answer.event_s:
        return "empty: no token came"
    if answer.completion_tokens != answer.wanted_tokens:
        return "length: not the number of tokens asked for"
    return None


def _error_name(refusal: Refused) -> str:
    try:
        error = orjson.loads(refusal.body)["error"]
        return str(error.get("code") or error.get("type") or "unnamed")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return refusal.reason
