"""A call's reply in OpenAI's words: what all its choices share, whole or as server-sent events.

Source: OpenAI's API reference; the `openai` client's types are what the tests hold these against.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import orjson

from router.answers import Answers, Piece
from router.figures import CallFigures, figures_of
from router.openai.errors import error_of_request
from router.request import Delta, Request

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"

_PLACES = {"ttft_s": 6, "tokens_per_second": 3, "cost_usd": 12}
"""Decimal places of figures in replies: microseconds, and far below what a token costs."""


class Reply(Protocol):
    """How one endpoint says a call's answers. A stream is `pieces` for each batch, at least one, then `end` or `failure`; each
    may be empty."""

    answers: Answers

    @property
    def ends_with_figures(self) -> bool:
        """The end of a stream says what the call took."""
        ...

    def pieces(self, pieces: Sequence[Piece]) -> bytes: ...

    def end(self) -> bytes: ...

    def failure(self, failed: Request) -> bytes: ...

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        """The body of a reply that is no stream: one delta per answer."""
        ...

    @property
    def figures(self) -> CallFigures: ...


class Choice(Protocol):
    """One answer in one endpoint's words. Its chunks are members of `choices`; how an answer opens goes with its first."""

    def delta(self, delta: Delta) -> list[Json]: ...

    def end(self) -> list[Json]: ...

    def whole(self, delta: Delta) -> Json: ...


class OpenAiReply:
    """A Reply of choices. `head` are the fields that every body and chunk begins with, `tail` those that end a whole body."""

    def __init__(
        self,
        answers: Answers,
        n: int,
        choices: Sequence[Choice],
        head: Json,
        chunk_object: str,
        includes_usage: bool,
        tail: Callable[[], Json] = dict,
    ) -> None:
        self.answers = answers
        self._n = n
        self._choices = choices
        self._head = head
        self._tail = tail
        self._chunk_head: Json = {**head, "object": chunk_object}
        self.ends_with_figures = includes_usage
        # A chunk is written for every token or few: what all of them share is encoded once.
        self._before_choice = b"data: " + orjson.dumps(self._chunk_head)[:-1] + b',"choices":['
        self._after_choice = (b'],"usage":null}' if includes_usage else b"]}") + b"\n\n"

    @property
    def figures(self) -> CallFigures:
        return figures_of(self.answers, self._n)

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        chunks: list[Json] = []
        for piece in pieces:
            choice = self._choices[piece.choice]
            if piece.delta:
                chunks += choice.delta(piece.delta)
            if piece.is_last:
                chunks += choice.end()
        return self._events(chunks)

    def end(self) -> bytes:
        usage = {**self._chunk_head, "choices": [], "usage": usage_of(self.figures)}
        return (event(usage) if self.ends_with_figures else b"") + DONE

    def failure(self, failed: Request) -> bytes:
        """What a stream says in place of its end when the call failed midway."""
        return b"data: " + error_of_request(failed)[1] + b"\n\n"

    def whole(self, deltas: Sequence[Delta]) -> bytes:
        choices = [choice.whole(delta) for choice, delta in zip(self._choices, deltas, strict=True)]
        return orjson.dumps({**self._head, "choices": choices, "usage": usage_of(self.figures), **self._tail()})

    def _events(self, chunks: Sequence[Json]) -> bytes:
        return b"".join([self._before_choice + orjson.dumps(chunk) + self._after_choice for chunk in chunks])


def event(content: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def usage_of(figures: CallFigures) -> Json:
    """OpenAI's usage, and under `serval` what else the call took."""
    own = asdict(figures)
    prompt, completion, cached = own.pop("prompt_tokens"), own.pop("completion_tokens"), own.pop("cached_tokens")
    # Clocks do not measure more: what lies behind are the errors of binary fractions.
    own |= {name: round(own[name], places) for name, places in _PLACES.items()}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "serval": own,
    }
