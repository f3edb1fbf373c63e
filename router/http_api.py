"""The OpenAI HTTP front: one accepted request's way from body to answer."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from protocol.errors import InvalidRequest, ServalError
from router.accounting import Accounting
from router.admission import Admission
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.openai_requests import ChatRequest, CompletionRequest, parse
from router.openai_responses import (
    AnswerFormat,
    ChatFormat,
    CompletionFormat,
    error_body,
    error_of,
    error_of_request,
    retry_after,
)
from router.request import GenerateSpec, Request, join
from router.request_id import request_ids
from router.tokenizer import TextTokenizer

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

Headers = list[tuple[bytes, bytes]]


class BodyTooLarge(Exception):
    pass


class OpenAiFront:
    """Answers /v1/chat/completions and /v1/completions. A refused body never reaches the dispatcher."""

    def __init__(
        self,
        config: RouterConfig,
        tokenizer: TextTokenizer,
        admission: Admission,
        dispatcher: Dispatcher,
        accounting: Accounting,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._admission = admission
        self._dispatcher = dispatcher
        self._accounting = accounting

    async def chat(self, http: HttpRequest) -> Response:
        return await self._answer(http, ChatRequest, self._admission.chat, ChatFormat)

    async def completion(self, http: HttpRequest) -> Response:
        return await self._answer(http, CompletionRequest, self._admission.completion, CompletionFormat)

    async def _answer(
        self,
        http: HttpRequest,
        kind: type[Any],
        admit: Callable[[Any], Coroutine[Any, Any, GenerateSpec]],
        form: type[AnswerFormat],
    ) -> Response:
        client_id, request_id = request_ids(http.headers.get("x-request-id"))
        id_header = [(b"x-request-id", client_id.encode())]
        try:
            body = await self._body(http)
            self._dispatcher.check_capacity()
            asked = parse(kind, body)
            spec = await admit(asked)
            request = self._dispatcher.accept(request_id, spec)
        except BodyTooLarge:
            self._accounting.refused(InvalidRequest("body"))
            message = f"the body is larger than {self._config.max_body_bytes} bytes"
            # The connection stays open, so that the client can read this; the rest of its body is thrown away.
            return RawResponse(413, error_body(message, 413), id_header)
        except ClientDisconnect:
            return RawResponse(499, b"", id_header)
        except TimeoutError:
            self._accounting.refused(InvalidRequest("body"))
            return RawResponse(408, error_body("the body did not come in time", 408), [*id_header, (b"connection", b"close")])
        except ServalError as error:
            self._accounting.refused(error)
            status, content = error_of(error)
            return RawResponse(status, content, id_header, error.retry_after_s)
        answer = form(self._config.model, request, self._tokenizer.token_bytes, asked.includes_usage)
        return OpenAiResponse(self._dispatcher, answer, bool(asked.stream), id_header)

    async def _body(self, http: HttpRequest) -> bytes:
        limit = self._config.max_body_bytes
        if int(http.headers.get("content-length") or 0) > limit:
            raise BodyTooLarge
        chunks, size = [], 0
        async with asyncio.timeout(self._config.body_timeout_s):
            async for chunk in http.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge
                chunks.append(chunk)
        return b"".join(chunks)


class RawResponse(Response):
    """A JSON body with exactly these headers; a retry is suggested where it can help."""

    def __init__(self, status: int, body: bytes, headers: Headers, retry_after_s: float | None = None) -> None:
        super().__init__(body, status_code=status, media_type="application/json")
        self.raw_headers.extend(headers)
        if status in (429, 503):
            self.raw_headers.append((b"retry-after", retry_after(retry_after_s)))


class OpenAiResponse(Response):
    """Waits for the first token or the end, and only then answers: so a failure before it has its true status. Owns the
    request until it has ended: whatever happens to the connection, the dispatcher hears of it."""

    def __init__(self, dispatcher: Dispatcher, answer: AnswerFormat, is_stream: bool, headers: Headers) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._answer = answer
        self._is_stream = is_stream
        self._extra_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self._answer.request
        watching = asyncio.create_task(_watch(receive, lambda: self._dispatcher.abandon(request)))
        try:
            await request.wait_started()
            if self._is_stream and (request.output or request.end is None or request.end.outcome.is_success):
                await self._stream(request, send)
            else:
                await self._whole(request, send)
        finally:
            self._dispatcher.abandon(request)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _stream(self, request: Request, send: Send) -> None:
        await send(self._start(200, EVENT_STREAM, request, [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]))
        beginning = self._answer.begin()
        async for delta in request.deltas():
            await send(_body(beginning + self._answer.delta(delta)))
            beginning = b""
        assert request.end is not None
        if request.end.outcome.is_success:
            await send(_body(beginning + self._answer.end(), more=False))
        else:
            await send(_body(beginning + self._answer.failure(), more=False))

    async def _whole(self, request: Request, send: Send) -> None:
        answer = join([delta async for delta in request.deltas()])
        assert request.end is not None
        if request.end.outcome.is_success:
            status, content = 200, orjson.dumps(self._answer.whole(answer))
        else:
            status, content = error_of_request(request)
        retry = [(b"retry-after", retry_after(request.end.retry_after_s))] if status in (429, 503) else []
        headers = [(b"content-length", str(len(content)).encode()), *retry]
        await send(self._start(status, JSON, request, headers))
        await send(_body(content, more=False))

    def _start(self, status: int, content_type: bytes, request: Request, headers: Headers) -> Message:
        workers = [
            (name, worker.name.encode())
            for name, worker in ((b"x-serval-decode-worker", request.decode), (b"x-serval-prefill-worker", request.prefill))
            if worker is not None
        ]
        content = [(b"content-type", content_type), *headers, *self._extra_headers, *workers]
        return {"type": "http.response.start", "status": status, "headers": content}


async def _watch(receive: Receive, on_disconnect: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    on_disconnect()


def _body(content: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}
