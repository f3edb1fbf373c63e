"""Bytes that are not the message that a method takes: the caller's mistake, and told so.

gRPC by itself answers UNKNOWN to each and logs a traceback, which any client could fill a log with.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

MALFORMED = object()


class RefuseMalformed(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Answers INVALID_ARGUMENT to a request that cannot be read. For methods that take one message and are coroutines."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        inner, read = getattr(handler, kind), handler.request_deserializer
        if not inspect.iscoroutinefunction(inner):
            return handler

        def try_to_read(data: bytes) -> Any:
            try:
                return read(data)
            except DecodeError:
                return MALFORMED

        async def call(request: Any, context: Any) -> Any:
            if request is MALFORMED:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not the message that this method takes")
            return await inner(request, context)

        return handler._replace(**{kind: call, "request_deserializer": try_to_read})
