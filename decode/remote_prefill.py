"""One attempt to have a prompt computed by a prefill worker and its KV written here.

Owns the lease from `start` to `settle`. The landing slot is given back for reuse only after the prefill worker said that nothing
of it can be written any more; otherwise it is quarantined (DESIGN: fencing).
"""

import asyncio
import logging
import time
from typing import Any

from decode.config import DecodeConfig
from decode.prefill_client import PrefillPeer
from decode.quarantine import Quarantine
from kvtransfer.lease import Landed, Lease
from kvtransfer.receiver import Receiver
from protocol import cluster_pb2
from protocol.errors import PrefillFailed, ServalError, TransferFailed, Unavailable

logger = logging.getLogger(__name__)


class RemotePrefill:
    """`first_token` and `landed` raise a ServalError as soon as the attempt is known to have failed. After `cancel` nothing is
    copied into the request's KV blocks. `settle` must be awaited once, on every path."""

    def __init__(
        self, peer: PrefillPeer, receiver: Receiver, quarantine: Quarantine, lease: Lease, config: DecodeConfig
    ) -> None:
        loop = asyncio.get_running_loop()
        self._peer = peer
        self._receiver = receiver
        self._quarantine = quarantine
        self._lease = lease
        self._config = config
        self._first: asyncio.Future[cluster_pb2.FirstToken] = loop.create_future()
        self._sent: asyncio.Future[cluster_pb2.Sent] = loop.create_future()
        self._failed: asyncio.Future[ServalError] = loop.create_future()
        self._landed = asyncio.wrap_future(lease.done)
        self._landed.add_done_callback(_look)
        self._reader: asyncio.Task[None] | None = None
        self.started: cluster_pb2.Started | None = None
        self.first_token_at = 0.0

    def start(self, request: cluster_pb2.PrefillRequest) -> None:
        self._reader = asyncio.create_task(self._read(request), name=f"prefill-{request.request_id}")

    async def first_token(self) -> cluster_pb2.FirstToken:
        timeout_s = self._config.first_token_timeout_s
        await _first_of(timeout_s, self._first, self._failed)
        if self._first.done():
            return self._first.result()
        raise self._failure(PrefillFailed(f"no first token within {timeout_s:g} s from {self._peer.peer.name}"))

    async def landed(self) -> Landed:
        """Every layer is in the pool and verified."""
        timeout_s = self._config.transfer_timeout_s
        await _first_of(timeout_s, self._landed, self._failed)
        if self._landed.done():
            return self._landed.result()
        raise self._failure(TransferFailed(f"the KV had not landed {timeout_s:g} s after the first token"))

    def cancel(self) -> None:
        """After it returns nothing is copied into the request's KV blocks any more."""
        if not self._lease.done.done():
            self._receiver.cancel(self._lease)

    @property
    def owes_busy_time(self) -> bool:
        """What it cost comes with the first token, and that has not come."""
        return not self._first.done()

    async def settle(self) -> float:
        """Ends the lease: the slot becomes free, or is quarantined when the peer cannot confirm. Bounded by the abort timeout.
        Returns the seconds that the peer's engine spent on the prompt, as far as they are known."""
        busy_s = 0.0
        if not self._config.fence_slots:
            self._receiver.release(self._lease, quiesced=True)
        if self._is_complete:
            # Everything was written, so Sent is on its way; asking for an abort would only add a call.
            await _first_of(self._config.abort_timeout_s, self._sent, self._failed)
        quiesced = self._sent.done() and self._sent.result().quiesced
        if not quiesced and self._reader is not None:
            answer = await self._peer.abort(self._lease.lease_id, self._config.abort_timeout_s)
            quiesced, busy_s = answer.quiesced, answer.busy_s
        if self._reader is not None:
            self._reader.cancel()
        if quiesced or self._reader is None:
            self._receiver.release(self._lease, quiesced=True)
        else:
            self._quarantine.add(self._lease, self._peer)
        return max(busy_s, self._first.result().busy_s) if self._first.done() else busy_s

    @property
    def _is_complete(self) -> bool:
        return self._landed.done() and not self._landed.cancelled() and self._landed.exception() is None

    def _failure(self, otherwise: ServalError) -> ServalError:
        return self._failed.result() if self._failed.done() else otherwise

    async def _read(self, request: cluster_pb2.PrefillRequest) -> None:
        try:
            await self._peer.introduce()
            async for event in self._peer.prefill(request):
                self._take(event)
            if not self._sent.done():
                raise Unavailable(f"{self._peer.peer.name} ended the call without a result")
        except ServalError as error:
            self._peer.introduce_again()
            self._fail(error)
        except asyncio.CancelledError:
            self._fail(Unavailable(f"the call to {self._peer.peer.name} was given up"))
            raise

    def _take(self, event: cluster_pb2.PrefillEvent) -> None:
        kind = event.WhichOneof("kind")
        if kind == "started":
            self.started = event.started
        elif kind == "first_token":
            self.first_token_at = time.monotonic()
            self._first.set_result(event.first_token)
        elif kind == "sent":
            self._sent.set_result(event.sent)
            if event.sent.error:
                self._peer.introduce_again()
                self._fail(TransferFailed(event.sent.error))

    def _fail(self, error: ServalError) -> None:
        if not self._failed.done():
            self._failed.set_result(error)


async def _first_of(timeout_s: float, *futures: asyncio.Future[Any]) -> None:
    """Returns when one of them is done, or at the deadline; cancels none."""
    await asyncio.wait(set(futures), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _look(future: asyncio.Future[Landed]) -> None:
    """Marks the exception as seen: an attempt that was given up has nobody left to read it."""
    if not future.cancelled():
        future.exception()
