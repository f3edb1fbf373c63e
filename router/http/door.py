"""The door of the HTTP front: who asks, how much of a body is read, and how a refusal is said."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from protocol.errors import InvalidRequest, ServalError
from protocol.ids import RequestId
from router.accounting import Accounting
from router.config import RouterConfig
from router.http.answer import RawResponse
from router.openai.errors import error_body, error_of
from router.request_id import request_ids
from router.tenants.caller import ANONYMOUS, Caller

CallerOf = Callable[[str | None], Caller]
"""The caller that an Authorization header names. Raises Unauthenticated."""


class BodyTooLarge(Exception):
    pass


@dataclass(frozen=True)
class Visit:
    """One HTTP request, let in. `headers` belong on every response to it."""

    http: HttpRequest
    caller: Caller
    request_id: RequestId
    headers: list[tuple[bytes, bytes]]


class Door:
    """Lets requests in, and turns what is raised for them into responses."""

    def __init__(self, config: RouterConfig, caller_of: CallerOf, accounting: Accounting) -> None:
        self._config = config
        self._caller_of = caller_of
        self._accounting = accounting

    async def let_in(self, http: HttpRequest, handle: Callable[[Visit], Awaitable[Response]]) -> Response:
        """What `handle` answers, or the refusal. A refused request never reaches the dispatcher."""
        client_id, request_id = request_ids(http.headers.get("x-request-id"))
        headers = [(b"x-request-id", client_id.encode())]
        caller = ANONYMOUS
        try:
            caller = self._caller_of(http.headers.get("authorization"))
            return await handle(Visit(http, caller, request_id, headers))
        except BodyTooLarge:
            self._accounting.refused(InvalidRequest("body"), caller)
            message = f"the body is larger than {self._config.max_body_bytes} bytes"
            # The connection stays open, so that the client can read this; the rest of its body is thrown away.
            return RawResponse(413, error_body(message, 413), headers)
        except ClientDisconnect:
            return RawResponse(499, b"", headers)
        except TimeoutError:
            self._accounting.refused(InvalidRequest("body"), caller)
            return RawResponse(408, error_body("the body did not come in time", 408), [*headers, (b"connection", b"close")])
        except ServalError as error:
            self._accounting.refused(error, caller)
            status, content = error_of(error)
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            return RawResponse(status, content, headers, error.retry_after_s)

    async def body(self, visit: Visit) -> bytes:
        """The whole body, within the configured limits of size and time."""
        limit = self._config.max_body_bytes
        if int(visit.http.headers.get("content-length") or 0) > limit:
            raise BodyTooLarge
        chunks, size = [], 0
        async with asyncio.timeout(self._config.body_timeout_s):
            async for chunk in visit.http.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge
                chunks.append(chunk)
        return b"".join(chunks)
