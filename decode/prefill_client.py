"""Calls to prefill workers: introductions, prompts, aborts. Knows gRPC and nothing of requests.

A prefill worker is known by its incarnation; its channel and the introduction live as long as it does.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio

from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.errors import InvalidRequest, Overloaded, PrefillFailed, ServalError, Unavailable
from protocol.ids import Incarnation, LeaseId, ProcessIdentity
from protocol.peer_stub import PeerStub
from protocol.tls import TlsIdentity
from worker.router_link import CHANNEL_OPTIONS

logger = logging.getLogger(__name__)

CLOSE_GRACE_S = 1.0

Introduction = Callable[[], cluster_pb2.IntroduceRequest]
"""Who we are and where our landing zone lies, as of now."""

ERROR_OF: dict[grpc.StatusCode, type[ServalError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: Unavailable,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


class PrefillPeer:
    """One incarnation of a prefill worker."""

    def __init__(
        self,
        peer: cluster_pb2.Peer,
        introduction: Introduction,
        connect_timeout_s: float,
        tls: TlsIdentity | None,
    ) -> None:
        self.peer = peer
        self.incarnation = Incarnation(peer.incarnation)
        self.process = ProcessIdentity.from_proto(peer.process)
        self.own_incarnation = Incarnation(introduction().decode.incarnation)
        self._introduction = introduction
        self._connect_timeout_s = connect_timeout_s
        self._stub = PeerStub(peer.address, "prefill", tls, CHANNEL_OPTIONS, cluster_pb2_grpc.PrefillServiceStub)
        self._introduced: asyncio.Task[None] | None = None
        self._introduced_zone = 0

    def __repr__(self) -> str:
        return f"PrefillPeer({self.peer.name}, {self.incarnation:x})"

    async def introduce(self) -> None:
        """Makes us known to the worker, once per landing zone; concurrent callers share the call. Raises Unavailable when it is
        another incarnation than expected, or does not answer; the next caller tries again."""
        introduction = self._introduction()
        if self._introduced is None or self._introduced_zone != introduction.landing_address:
            self._introduced_zone = introduction.landing_address
            self._introduced = asyncio.create_task(self._introduce(introduction))
        try:
            await asyncio.shield(self._introduced)
        except ServalError:
            self._introduced = None
            raise

    def introduce_again(self) -> None:
        """The next prompt introduces us anew: a call has failed, and it may be that the worker does not know us any more."""
        self._introduced = None

    async def prefill(self, request: cluster_pb2.PrefillRequest) -> AsyncIterator[cluster_pb2.PrefillEvent]:
        """The events of one prompt. Closing the iterator cancels the call."""
        try:
            call = self._stub.get().Prefill(request)
        except grpc.aio.UsageError as error:
            raise Unavailable(f"prefill worker {self.peer.name} is gone") from error
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise _mapped(error, self.peer.name) from error
        finally:
            call.cancel()

    async def abort(self, lease_id: LeaseId, timeout_s: float) -> cluster_pb2.AbortResponse:
        """Quiesced when the worker confirmed that nothing is written under the lease any more."""
        request = cluster_pb2.AbortRequest(
            lease_id=lease_id, decode_incarnation=self.own_incarnation, prefill_incarnation=self.incarnation
        )
        try:
            answer: cluster_pb2.AbortResponse = await self._stub.get().Abort(request, timeout=timeout_s)
            return answer
        except grpc.aio.AioRpcError as error:
            logger.info("no confirmation from %s that lease %d is over: %s", self.peer.name, lease_id, error.details())
        except grpc.aio.UsageError:  # the channel is closed
            logger.info("no confirmation from %s that lease %d is over: it is gone", self.peer.name, lease_id)
        return cluster_pb2.AbortResponse()

    async def close(self) -> None:
        """Calls to a process that is gone end by themselves, with their own error; the grace is for that."""
        await self._stub.close(CLOSE_GRACE_S)

    async def _introduce(self, introduction: cluster_pb2.IntroduceRequest) -> None:
        try:
            answer = await self._stub.get().Introduce(introduction, timeout=self._connect_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _mapped(error, self.peer.name) from error
        except grpc.aio.UsageError as error:
            raise Unavailable(f"prefill worker {self.peer.name} is gone") from error
        if answer.prefill.incarnation != self.incarnation:
            raise Unavailable(f"{self.peer.name} was restarted: {self.peer.address} is another incarnation now")


class PrefillPeers:
    """The prefill workers met so far. A name's new incarnation replaces the old one; those gone are dropped."""

    def __init__(self, introduction: Introduction, connect_timeout_s: float, tls: TlsIdentity | None = None) -> None:
        self._introduction = introduction
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._by_incarnation: dict[Incarnation, PrefillPeer] = {}

    def get(self, peer: cluster_pb2.Peer) -> PrefillPeer:
        known = self._by_incarnation.get(Incarnation(peer.incarnation))
        if known is None:
            known = PrefillPeer(peer, self._introduction, self._connect_timeout_s, self._tls)
            self._by_incarnation[known.incarnation] = known
        return known

    def gone(self) -> list[PrefillPeer]:
        """Peers whose process provably no longer runs."""
        return [peer for peer in self._by_incarnation.values() if peer.process.is_gone()]

    async def forget(self, peer: PrefillPeer) -> None:
        del self._by_incarnation[peer.incarnation]
        await peer.close()

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self._by_incarnation.values()))


def _mapped(error: grpc.aio.AioRpcError, name: str) -> ServalError:
    return ERROR_OF.get(error.code(), PrefillFailed)(f"prefill worker {name}: {error.details()}")
