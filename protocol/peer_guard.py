"""Who may call what on a server that only Serval's own processes reach: decided by the role in the caller's certificate."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import grpc
import grpc.aio

from protocol.tls import TRUST_DOMAIN, PeerRole


def peer_roles(context: Any) -> frozenset[str] | None:
    """The roles in the certificate of a call's peer; None where the connection has no TLS, so that nobody is known."""
    auth = context.auth_context()
    if list(auth.get("transport_security_type", ())) != [b"ssl"]:
        return None
    names = [name.decode() for name in auth.get("peer_dns", ())]
    suffix = f".{TRUST_DOMAIN}"
    return frozenset(name.removesuffix(suffix) for name in names if name.endswith(suffix))


class PeerGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets only peers of `roles` call `services`, whatever methods they have; others get PERMISSION_DENIED and are counted.

    Health and reflection on the same server are for whoever has a certificate of the cluster. For servers with TLS: on one
    without, nobody has a role and every call is refused.
    """

    def __init__(self, services: Collection[str], roles: Collection[PeerRole], on_refused: Callable[[], None]) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._roles = roles
        self._on_refused = on_refused

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefixes):
            return handler
        return self._guarded(handler)

    def _guarded(self, handler: Any) -> Any:
        """The same handler behind a check. gRPC tells a coroutine from an async generator by the function itself."""
        if handler.unary_unary is not None or handler.stream_stream is not None:
            inner = handler.unary_unary or handler.stream_stream

            async def call(request: Any, context: Any) -> Any:
                await self._check(context)
                return await inner(request, context)

            return handler._replace(**{"unary_unary" if handler.unary_unary else "stream_stream": call})

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._check(context)
            async with contextlib.aclosing(handler.unary_stream(request, context)) as answers:
                async for answer in answers:
                    yield answer

        return handler._replace(unary_stream=stream)

    async def _check(self, context: Any) -> None:
        roles = peer_roles(context) or frozenset()
        if roles.isdisjoint(self._roles):
            self._on_refused()
            allowed = " or ".join(self._roles)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"only a {allowed} worker may call this")
