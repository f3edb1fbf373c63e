"""The generating endpoints' own way in, past FastAPI.

FastAPI declares these endpoints (its OpenAPI document says what they take and answer) and would serve them, but none of its layers
does anything for them, and some of those cost every event of every stream: a tenth of a request's time, measured.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.http.answer import RawResponse
from router.openai.errors import error_body

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def bug_response() -> Response:
    return RawResponse(500, error_body("the router failed; its log says why", 500, None, "internal"))


class Shortcuts:
    """An ASGI application: a POST to one of `endpoints` (by path) goes there, everything else to `app`."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"]) if is_post else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        has_begun = False

        def noticed(message: Message) -> Awaitable[None]:
            nonlocal has_begun
            has_begun = True
            return send(message)

        try:
            response = await endpoint(HttpRequest(scope, receive))
            await response(scope, receive, noticed)
        except Exception:
            if not has_begun:
                await bug_response()(scope, receive, send)
            raise  # the server logs it, and cuts what has begun
