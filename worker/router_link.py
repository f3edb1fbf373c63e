"""A worker's streams to the routers: it dials, says Hello, reports its load, and takes orders.

One stream per router carries everything (protocol/cluster.proto). A broken stream is dialled again for ever, with jittered
back-off: a router that comes back finds its workers by itself.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import grpc
import grpc.aio

from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.ids import Incarnation
from protocol.outcomes import Outcome
from protocol.peer_stub import dial
from protocol.tls import TlsIdentity
from worker.config import LinkConfig
from worker.outbox import Outbox

logger = logging.getLogger(__name__)

# A silent network loss is noticed by HTTP/2 pings; a stopped process by the other side's silence deadline.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A channel must not share a broken connection, or its back-off, with an older one to the same address.
    ("grpc.use_local_subchannel_pool", 1),
)


FLUSH_S = 1.0
"""For the last words at a stop. A router that does not read has lost this worker anyway."""


class OrderHandler(Protocol):
    """What a worker does with a router's orders. All methods run on the event loop and must not block."""

    def on_submit(self, link: "RouterLink", submit: cluster_pb2.Submit) -> None: ...

    def on_cancel(self, link: "RouterLink", request: int) -> None: ...

    def on_lost(self, link: "RouterLink") -> None:
        """The stream ended: nobody waits for this link's requests any more."""


class LinkWatcher(Protocol):
    """Hears when a stream begins and ends; on the event loop."""

    def add(self, link: "RouterLink") -> None: ...

    def remove(self, link: "RouterLink") -> None: ...


class RouterLink:
    """One worker's stream to one router. `send` may be called at any time; without a live stream it drops what it is given,
    because a router forgets a worker's requests with the stream."""

    def __init__(
        self,
        address: str,
        hello: cluster_pb2.Hello,
        load: Callable[[Incarnation], cluster_pb2.LoadReport],
        handler: OrderHandler,
        config: LinkConfig,
        watcher: LinkWatcher | None = None,
        tls: TlsIdentity | None = None,
        on_stalled: Callable[[], None] = lambda: None,
    ) -> None:
        """`load` makes a report for a router. `on_stalled` is called when a stream is ended because its router takes nothing."""
        self.address = address
        self._hello = hello
        self._load = load
        self._handler = handler
        self._config = config
        self._watcher = watcher
        self._tls = tls
        self._on_stalled = on_stalled
        self.router = Incarnation(0)
        """The router process that the last stream was to."""
        self._outbox: Outbox | None = None
        self._draining = False
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RouterLink({self.address}, {'live' if self.is_live else 'down'})"

    @property
    def is_live(self) -> bool:
        return self._outbox is not None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"router-link-{self.address}")

    async def stop(self) -> None:
        """What was sent still goes out: the stream is closed behind it, and the router closes its end when it has read all."""
        self._is_stopping.set()
        if self._task is None:
            return
        if self._outbox is not None:
            self._outbox.close()
            await asyncio.wait([self._task], timeout=FLUSH_S)
        self._task.cancel()
        await asyncio.wait([self._task], timeout=2.0)

    def send(self, outputs: Iterable[cluster_pb2.RequestOutput]) -> None:
        """Queues one engine step's outputs as one message."""
        self.send_message(cluster_pb2.FromWorker(step=cluster_pb2.StepOutput(outputs=outputs)))

    def send_message(self, message: cluster_pb2.FromWorker) -> None:
        """Queues any message; it must not be changed afterwards."""
        if self._outbox is not None:
            self._outbox.put(message)

    def say_draining(self) -> None:
        self._draining = True
        self.send_message(cluster_pb2.FromWorker(draining=cluster_pb2.Draining()))

    async def _keep(self) -> None:
        pause_s = self._config.reconnect_min_s
        while not self._is_stopping.is_set():
            try:
                if await self._run_once():
                    pause_s = self._config.reconnect_min_s
            except (grpc.aio.AioRpcError, TimeoutError, ConnectionError) as error:
                detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or "given up"
                level = logging.DEBUG if self._draining else logging.INFO  # a cluster that stops ends its router first
                logger.log(level, "no stream to router %s: %s", self.address, detail)
            except Exception:  # a bug, and without another try the router would never see this worker again
                logger.exception("the stream to router %s failed", self.address)
            if self._is_stopping.is_set():
                return
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._config.reconnect_max_s)

    async def _run_once(self) -> bool:
        """One stream from dial to end. True when the router had welcomed us."""
        async with dial(self.address, "router", self._tls, CHANNEL_OPTIONS) as channel:
            patience = asyncio.timeout(None)
            outbox = Outbox(self._config.outbox_max_bytes, on_full=lambda: self._give_up(patience))
            outbox.put(cluster_pb2.FromWorker(hello=self._hello))
            stub: Any = cluster_pb2_grpc.RouterLinkStub(channel)
            call = stub.Connect(outbox.messages())
            try:
                first = await asyncio.wait_for(call.read(), self._config.connect_timeout_s)
                if first is grpc.aio.EOF:  # type: ignore[attr-defined]
                    raise ConnectionError(call.details() or "the router closed the stream")
                self.router = Incarnation(first.welcome.router.incarnation)
                logger.info("joined router %s", first.welcome.router.name)
                async with patience:
                    await self._serve(call, outbox)
                return True
            finally:
                was_live, self._outbox = self._outbox is not None, None
                call.cancel()
                outbox.close()  # gRPC leaves the task that writes waiting for ever
                if was_live:
                    if self._watcher is not None:
                        self._watcher.remove(self)
                    self._handler.on_lost(self)

    async def _serve(self, call: Any, outbox: Outbox) -> None:
        """The router knows this worker: takes its orders until it ends the stream."""
        self._outbox = outbox
        if self._draining:
            self.say_draining()
        if self._watcher is not None:
            self._watcher.add(self)
        reports = asyncio.create_task(self._report(outbox))
        try:
            # Only read(): a call that was read once refuses to be iterated.
            while (order := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                self._take(order)
        finally:
            reports.cancel()

    def _give_up(self, patience: asyncio.Timeout) -> None:
        """Its requests are given up with the stream; it is dialled again, and may be better then."""
        logger.warning(
            "router %s takes nothing: more than %d bytes wait for it (link.outbox_max_bytes); ending its stream",
            self.address, self._config.outbox_max_bytes,
        )  # fmt: skip
        self._on_stalled()
        patience.reschedule(asyncio.get_running_loop().time())

    def _take(self, order: cluster_pb2.FromRouter) -> None:
        """An order that cannot be followed ends its request alone, not the stream that all of them share."""
        try:
            self._dispatch(order)
        except Exception:
            logger.exception("an order of router %s could not be followed", self.address)
            if order.WhichOneof("kind") == "submit":
                ended = cluster_pb2.Ended(outcome=Outcome.INTERNAL, message="the worker failed to take the request")
                self.send([cluster_pb2.RequestOutput(request=order.submit.request, ended=ended)])

    def _dispatch(self, order: cluster_pb2.FromRouter) -> None:
        kind = order.WhichOneof("kind")
        if kind == "submit":
            self._handler.on_submit(self, order.submit)
        elif kind == "cancel":
            self._handler.on_cancel(self, order.cancel.request)

    async def _report(self, outbox: Outbox) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                outbox.put(cluster_pb2.FromWorker(load=self._load(self.router)))
                await asyncio.sleep(self._config.load_report_period_s)
