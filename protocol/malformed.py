"""Bytes that are not the message that a method takes: the caller's mistake, and told so.

gRPC by itself answers UNKNOWN to each and logs a traceback, which any client could fill a log with.
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

MALFORMED = object()


class RefuseMalformed(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Answers INVALID_ARGUMENT to a request that cannot be read, of methods that take one message and are coroutines or
    asynchronous generators. Methods of ours that take a stream read MALFORMED where a message cannot be read."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        if handler.request_streaming:
            return handler._replace(request_deserializer=_reader(handler)) if _is_ours(handler_call_details) else handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        inner = getattr(handler, kind)
        if not inspect.iscoroutinefunction(inner) and not inspect.isasyncgenfunction(inner):
            return handler

        async def call(request: Any, context: Any) -> Any:
            if request is MALFORMED:
                await _refuse(context)
            return await inner(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            if request is MALFORMED:
                await _refuse(context)
            async with contextlib.aclosing(inner(request, context)) as answers:
                async for answer in answers:
                    yield answer

        answering = stream if inspect.isasyncgenfunction(inner) else call
        return handler._replace(**{kind: answering, "request_deserializer": _reader(handler)})


def _reader(handler: Any) -> Callable[[bytes], Any]:
    """Gives MALFORMED for what the method's own reader cannot read."""
    read = handler.request_deserializer

    def try_to_read(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return MALFORMED

    return try_to_read


def _is_ours(details: Any) -> bool:
    return str(details.method).startswith("/serval.")


async def _refuse(context: Any) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not the message that this method takes")
