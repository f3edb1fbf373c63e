"""The ASGI side of a reply: when it begins, what headers it has, and that a client which goes away is noticed."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from router.answers import Answers
from router.openai.errors import error_of_request, retry_after
from router.openai.replies import Reply

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Headers = Sequence[tuple[bytes, bytes]]


class RawResponse(Response):
    """A JSON body with exactly these headers; a retry is suggested where it can help."""

    def __init__(self, status: int, body: bytes, headers: Headers = (), retry_after_s: float | None = None) -> None:
        super().__init__(body, status_code=status, media_type="application/json")
        self.raw_headers.extend(headers)
        if status in (429, 503):
            self.raw_headers.append((b"retry-after", retry_after(retry_after_s)))


class AnswerResponse(Response):
    """Waits for the first token or the end, and only then answers: so a failure before it has its true status. Owns the call
    until it has ended: whatever happens to the connection, `abandon` is called."""

    def __init__(
        self, reply: Reply, abandon: Callable[[Answers], None], is_stream: bool, headers: Headers, explains: bool = False
    ) -> None:
        super().__init__()
        self._reply = reply
        self._abandon = abandon
        self._is_stream = is_stream
        self._extra_headers = headers
        self._explains = explains

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = self._reply.answers
        watching = asyncio.create_task(_watch(receive, lambda: self._abandon(answers)))
        try:
            await answers.wait_started()
            failed = answers.failed
            if self._is_stream and (failed is None or failed.output):
                await self._stream(send)
            else:
                await self._whole(send)
        finally:
            self._abandon(answers)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _stream(self, send: Send) -> None:
        reply = self._reply
        await send(self._start(200, EVENT_STREAM, [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]))
        async for pieces in reply.answers.pieces():
            if content := reply.pieces(pieces):
                await send(_body(content))
        failed = reply.answers.failed
        if failed is None and reply.ends_with_figures:
            await reply.answers.wait_settled()
        await send(_body(reply.end() if failed is None else reply.failure(failed), more=False))

    async def _whole(self, send: Send) -> None:
        reply = self._reply
        deltas = await reply.answers.whole()
        failed = reply.answers.failed
        if failed is None:
            await reply.answers.wait_settled()
            status, content = 200, reply.whole(deltas)
            headers = self._figures()
        else:
            status, content = error_of_request(failed)
            headers = []
            if status in (429, 503) and failed.end is not None:
                headers = [(b"retry-after", retry_after(failed.end.retry_after_s))]
        length = (b"content-length", str(len(content)).encode())
        await send(self._start(status, JSON, [length, *headers]))
        await send(_body(content, more=False))

    def _figures(self) -> Headers:
        figures = self._reply.figures
        return [
            (b"x-serval-ttft-ms", f"{figures.ttft_s * 1000:.3f}".encode()),
            (b"x-serval-tokens-per-second", f"{figures.tokens_per_second:.3f}".encode()),
            (b"x-serval-cost-usd", f"{figures.cost_usd:.9f}".encode()),
        ]

    def _start(self, status: int, content_type: bytes, headers: Headers) -> Message:
        first = self._reply.answers.requests[0]
        named = ((b"x-serval-decode-worker", first.decode), (b"x-serval-prefill-worker", first.prefill))
        placed = [(name, worker.name.encode()) for name, worker in named if worker is not None]
        if self._explains:
            placed.append((b"x-serval-placement", orjson.dumps(first.explanation)))
        return {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type), *headers, *self._extra_headers, *placed],
        }


async def _watch(receive: Receive, on_disconnect: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    on_disconnect()


def _body(content: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}
