"""How one process of the cluster calls another for as long as both live."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from protocol.tls import PeerRole, TlsIdentity, dns_name

OLD_CALLS_S = 120.0
"""Seconds that open calls of a channel get after it was replaced. Longer than any prompt takes."""


def dial(address: str, role: PeerRole, tls: TlsIdentity | None, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel to the process at `address`, which must prove that it has `role`; without `tls` nobody proves anything."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    expect = ("grpc.ssl_target_name_override", dns_name(role))
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=[*options, expect])


class PeerStub:
    """A stub whose channel is dialled anew once our own certificate was replaced: gRPC redials by itself, but with what it was
    given. Calls that are open stay where they are."""

    def __init__(
        self,
        address: str,
        role: PeerRole,
        tls: TlsIdentity | None,
        options: Sequence[tuple[str, Any]],
        make: Callable[[grpc.aio.Channel], Any],
    ) -> None:
        self._address = address
        self._role = role
        self._tls = tls
        self._options = options
        self._make = make
        self._closing: set[asyncio.Task[None]] = set()
        self._dial()

    def get(self) -> Any:
        """The stub for the next call."""
        if self._tls is not None:
            self._tls.refresh()
            if self._tls.version != self._version:
                task = asyncio.create_task(self._channel.close(OLD_CALLS_S), name=f"old-channel-{self._address}")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
                self._dial()
        return self._stub

    async def close(self, grace_s: float) -> None:
        """Open calls get `grace_s` to end by themselves."""
        for task in self._closing:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._closing)
        await self._channel.close(grace_s)

    def _dial(self) -> None:
        self._channel = dial(self._address, self._role, self._tls, self._options)
        self._version = self._tls.version if self._tls else 0
        self._stub = self._make(self._channel)
