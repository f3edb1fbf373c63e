"""Many streaming chat completions at once, over connections that are kept. Light: while it measures it only notes when which
bytes came; they are read afterwards."""

import argparse
import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.completions import DONE, EventStream
from benchmarks.http_stream import ChunkedBody
from benchmarks.router_cost.answers import Answers
from benchmarks.router_cost.pipe import Json, serve
from benchmarks.workload import text_prompt

PROMPT_WORDS = 32
LAST_CHUNK = b"0\r\n\r\n"

Piece = tuple[float, bytes]


@dataclass
class Answer:
    """What one request brought. `at_s` has a time for each token."""

    at_s: list[float] = field(default_factory=list)
    text: str = ""
    events: int = 0
    """Those with text."""

    @property
    def tokens(self) -> int:
        return len(self.at_s)


class BadAnswer(Exception):
    """Not the answer that the mock worker gave."""


class Connection(asyncio.Protocol):
    """Asks for one request after another, until there are none left."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._end = b""
        self._pieces: list[Piece] = []
        self._transport: asyncio.Transport | None = None
        self.answers: list[list[Piece]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))
        self._end = (self._end + data)[-len(LAST_CHUNK) :]
        if self._end == LAST_CHUNK:
            self.answers.append(self._pieces)
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswer(f"the router closed a connection ({error}): {self._pieces[-1:]}"))

    def _ask(self) -> None:
        assert self._transport is not None
        self._pieces, self._end = [], b""
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()


async def ask(
    url: str, model: str, streams: int, requests: int, tokens: int, spread_s: float, timeout_s: float
) -> tuple[float, list[list[Piece]]]:
    """`requests` in all, `streams` at any time; the first ones spread over `spread_s`. Seconds from the first request to the last
    answer, and the bytes of the answers."""
    address = urlsplit(url)
    waiting = iter([_request(address.netloc, model, tokens) for _ in range(requests)])
    loop = asyncio.get_running_loop()
    assert address.hostname is not None and address.port is not None
    host, port = address.hostname, address.port
    connections: list[Connection] = []
    started_s = time.perf_counter()

    async def user(number: int) -> None:
        await asyncio.sleep(spread_s * number / streams)
        _, connection = await loop.create_connection(lambda: Connection(waiting), host, port)
        connections.append(connection)
        await connection.done

    async with asyncio.timeout(timeout_s):
        await asyncio.gather(*(user(number) for number in range(streams)))
    duration_s = time.perf_counter() - started_s
    return duration_s, [answer for connection in connections for answer in connection.answers]


def _request(host: str, model: str, tokens: int) -> bytes:
    body = orjson.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": text_prompt(random.Random(), PROMPT_WORDS)}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read(pieces: list[Piece]) -> Answer:
    """Raises BadAnswer for anything but a stream that ended as it should."""
    answer, body, events = Answer(), ChunkedBody(), EventStream()
    head, _, rest = pieces[0][1].partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"chunked" not in head.lower():
        raise BadAnswer(b"".join(data for _, data in pieces)[:300].decode(errors="replace"))
    last = b""
    for at_s, data in [(pieces[0][0], rest), *pieces[1:]]:
        for last in events.feed(body.feed(data)):
            if last != DONE:
                _take(answer, orjson.loads(last), at_s)
    if last != DONE:
        raise BadAnswer(f"a stream ended in {last[:300]!r}")
    return answer


def _take(answer: Answer, event: dict[str, Any], at_s: float) -> None:
    if "error" in event:
        raise BadAnswer(str(event["error"])[:300])
    text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    if not text:
        return
    answer.events += 1
    if not answer.text:
        text = " " + text.lstrip(" ")  # some servers leave the first word's space out
    answer.text += text
    answer.at_s += [at_s] * text.count(" ")  # a word is one token and begins with its space


def check(answer: Answer, answers: Answers, tokens: int) -> int:
    """The request's number. Raises BadAnswer where the text is not, word for word, what the worker sent."""
    words = answer.text.split()
    number = answers.number(words[0]) if words else None
    if number is None or words != answers.words(number, tokens):
        raise BadAnswer(f"not the text that was sent: {len(words)} words of {tokens}: {answer.text[:100]!r}")
    return number


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the model's folder")
    answers = Answers.from_folder(parser.parse_args().folder)

    async def answer(question: Json) -> Json:
        try:
            duration_s, pieces = await ask(**question)
            read_answers = [read(each) for each in pieces]
            at_s = {check(each, answers, question["tokens"]): each.at_s for each in read_answers}
        except (BadAnswer, OSError, TimeoutError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {
            "duration_s": duration_s,
            "tokens": sum(each.tokens for each in read_answers),
            "events": sum(each.events for each in read_answers),
            "at_s": at_s,
        }

    await serve({}, answer)


if __name__ == "__main__":
    asyncio.run(main())
