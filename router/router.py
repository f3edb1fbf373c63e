"""The router: its servers and what lies between them, on the running event loop."""

import asyncio
import logging
import time
from dataclasses import dataclass

from protocol import cluster_pb2, cluster_pb2_grpc, serval_pb2, serval_pb2_grpc
from protocol.errors import ConfigError
from protocol.ids import ProcessIdentity, draw_incarnation
from protocol.server import GrpcServer
from router.accounting import Accounting
from router.admission import Admission
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.grpc_api import ServalService
from router.http_api import OpenAiFront
from router.http_app import build_app
from router.http_server import HttpServer
from router.link import RouterLinkService
from router.model import ModelInfo
from router.status import Status
from router.tokenizer import TextTokenizer
from router.workers import Membership
from telemetry.metrics import Metrics
from telemetry.tracing import OFF, Tracing

logger = logging.getLogger(__name__)

_TICK_S = 0.1
_CLIENT_SERVICE = serval_pb2.DESCRIPTOR.services_by_name["Serval"].full_name
_LINK_SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["RouterLink"].full_name


@dataclass(frozen=True)
class BoundPorts:
    """`grpc` is for clients, `link` for workers."""

    http: int
    grpc: int
    link: int


class Router:
    """One router. Nothing is global and no signal is touched, so it runs in its own process, in a Ray replica and in tests.

    Construction reads the model's folder and may take a second; it raises ConfigError for what is wrong there.
    """

    def __init__(self, config: RouterConfig, metrics: Metrics, tracing: Tracing = OFF) -> None:
        self._config = config
        self._metrics = metrics
        self._tracing = tracing
        self.model = ModelInfo.from_folder(config.model, config.model_dir, config.max_model_len)
        self._tokenizer = TextTokenizer.from_folder(config.model_dir, config.long_prompt_characters)
        self._running: _Running | None = None

    async def start(self) -> BoundPorts:
        """Binds the ports and serves; returns once all accept connections."""
        if self._running is not None:
            raise RuntimeError("started twice")
        self._running = _Running(self._config, self._metrics, self._tracing, self.model, self._tokenizer)
        try:
            return await self._running.start()
        except BaseException:
            await self._running.stop(0)
            raise

    async def drain(self) -> None:
        """Takes no new request from now on and returns when the last open one has ended. The caller bounds the wait."""
        if self._running is not None:
            await self._running.drain()

    async def stop(self, deadline_s: float) -> None:
        """Drains for at most `deadline_s`, ends what is left in error events, and closes the servers."""
        running, self._running = self._running, None
        if running is not None:
            await running.stop(deadline_s)

    @property
    def members(self) -> Membership | None:
        """The live workers, while started."""
        return self._running.members if self._running else None


class _Running:
    """What exists between start and stop."""

    def __init__(
        self, config: RouterConfig, metrics: Metrics, tracing: Tracing, model: ModelInfo, tokenizer: TextTokenizer
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._model = model
        self._http = HttpServer(config.host, config.http_port, config.client_stall_s)
        self._me = cluster_pb2.Peer(
            name=config.name, incarnation=draw_incarnation(), process=ProcessIdentity.of_this_process().to_proto()
        )
        accounting = Accounting(metrics)
        self.members = Membership(self._me, config.model, metrics)
        self._dispatcher = Dispatcher(config, model, tokenizer, self.members, accounting)
        admission = Admission(model, tokenizer, self.members)
        self._front = OpenAiFront(config, tokenizer, admission, self._dispatcher, accounting)
        self._grpc = GrpcServer([_CLIENT_SERVICE], max_receive_bytes=config.max_body_bytes)
        serval = ServalService(model, admission, self._dispatcher, accounting)
        serval_pb2_grpc.add_ServalServicer_to_server(serval, self._grpc.server)
        link = RouterLinkService(self.members, self._dispatcher, config.worker_silence_s)
        self._link = GrpcServer([_LINK_SERVICE])
        cluster_pb2_grpc.add_RouterLinkServicer_to_server(link, self._link.server)
        self._janitor: asyncio.Task[None] | None = None

    async def start(self) -> BoundPorts:
        config = self._config
        grpc_port = await self._listen(self._grpc, "grpc_port", config.grpc_port)
        link_port = await self._listen(self._link, "link_port", config.link_port)
        self._me.address = f"{config.host}:{link_port}"
        status = Status(self.members, self._dispatcher, config.name, f"{config.host}:{self._http.port}")
        await self._http.start(build_app(self._front, status, self._model, self._metrics, int(time.time())))
        self._janitor = asyncio.create_task(self._watch(), name="router-janitor")
        ports = BoundPorts(http=self._http.port, grpc=grpc_port, link=link_port)
        logger.info("%s: HTTP %d, gRPC %d, workers %d, model %s", config.host, ports.http, grpc_port, link_port, config.model)
        return ports

    async def _listen(self, server: GrpcServer, field: str, port: int) -> int:
        try:
            return await server.start(self._config.host, port)
        except ConfigError as error:
            raise ConfigError(f"{field}: {error}") from error

    async def drain(self) -> None:
        self._dispatcher.is_draining = True
        await self._grpc.drain()
        await self._link.drain()
        await self._dispatcher.wait_idle()

    async def stop(self, deadline_s: float) -> None:
        try:
            await asyncio.wait_for(self.drain(), deadline_s)
        except TimeoutError:
            logger.warning("%d requests did not end within %g s", self._dispatcher.open_requests, deadline_s)
        self._dispatcher.end_all("the router stopped; a retry elsewhere can help")
        await self._http.stop(deadline_s=2)
        self.members.close("the router stops")
        await asyncio.gather(self._grpc.stop(grace_s=1), self._link.stop(grace_s=1))
        if self._janitor is not None:
            self._janitor.cancel()

    async def _watch(self) -> None:
        """Gives up workers that are silent or stand still, and measures how late the loop runs; on its own clock."""
        loop = asyncio.get_running_loop()
        lag = self._metrics.loop_lag.of()
        due = loop.time()
        while True:
            due += _TICK_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            late_s = loop.time() - due
            lag.observe(max(0.0, late_s))
            if late_s > _TICK_S:
                # The loop was held up, so workers could not be heard: read first what they have sent.
                due = loop.time()
                continue
            for worker, reason in self.members.overdue(loop.time(), self._config.worker_silence_s, self._config.worker_stall_s):
                self.members.leave(worker, reason)
