"""The router: its servers and what lies between them, on the running event loop."""

import asyncio
import logging
import time
from dataclasses import dataclass

from protocol import cluster_pb2, cluster_pb2_grpc, serval_pb2, serval_pb2_grpc
from protocol.errors import ConfigError
from protocol.ids import ProcessIdentity, draw_incarnation
from protocol.peer_guard import PeerGuard
from protocol.server import GrpcServer
from protocol.tls import TlsIdentity
from router.accounting import Accounting
from router.admission import Admission
from router.config import RouterConfig
from router.dashboard.dashboard import Dashboard
from router.dispatch import Dispatcher
from router.grpc.service import ServalService
from router.http.app import Fronts, build_app, with_shortcuts
from router.http.door import Door
from router.http.server import HttpServer
from router.http.status import Status
from router.link import RouterLinkService
from router.model import ModelInfo
from router.objectives import Objectives
from router.openai.front import OpenAiFront
from router.openai.tokens import TokensFront
from router.pool_load import ClusterLoad
from router.responses.front import ResponsesFront
from router.server_load import server_load
from router.tenants.keys import ApiKeys
from router.text.tokenizer import TextTokenizer
from router.workers import Membership
from telemetry.metrics import Metrics
from telemetry.model_server import ServerLoad
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
        self._access = _Access.of(config, metrics)
        self._running: _Running | None = None

    async def start(self) -> BoundPorts:
        """Binds the ports and serves; returns once all accept connections."""
        if self._running is not None:
            raise RuntimeError("started twice")
        self._running = _Running(self._config, self._metrics, self._tracing, self._access, self.model, self._tokenizer)
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

    def pool_load(self, window_s: float) -> ClusterLoad | None:
        """What both pools have to do now, for who scales them; None unless started. `window_s`: how long answers count."""
        return self._running.pool_load(window_s) if self._running else None

    @property
    def members(self) -> Membership | None:
        """The live workers, while started."""
        return self._running.members if self._running else None


@dataclass(frozen=True)
class _Access:
    """Who we are towards clients and towards workers, and who clients are."""

    front: TlsIdentity | None
    link: TlsIdentity | None
    keys: ApiKeys

    @classmethod
    def of(cls, config: RouterConfig, metrics: Metrics) -> "_Access":
        """Reads the files; raises ConfigError."""
        return cls(
            front=TlsIdentity(config.tls, "router.tls") if config.tls else None,
            link=TlsIdentity(config.link_tls, "router.link_tls") if config.link_tls else None,
            keys=ApiKeys(config.keys_file, config.tenants, metrics),
        )


class _Running:
    """What exists between start and stop."""

    def __init__(
        self,
        config: RouterConfig,
        metrics: Metrics,
        tracing: Tracing,
        access: _Access,
        model: ModelInfo,
        tokenizer: TextTokenizer,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._model = model
        self._keys = access.keys
        self._http = HttpServer(config, access.front, metrics)
        self._me = cluster_pb2.Peer(
            name=config.name, incarnation=draw_incarnation(), process=ProcessIdentity.of_this_process().to_proto()
        )
        accounting = Accounting(metrics, config.cost, Objectives(config.slo_ttft_s, config.slo_itl_s))
        self.members = Membership(self._me, config.model, metrics)
        accounting.bill_pools(self.members.worker_time)
        self._dispatcher = Dispatcher(config, model, tokenizer, self.members, accounting)
        metrics.model_server.read_from(self._server_load)
        self._keys.on_reloaded = self._take_tenants
        self._take_tenants()
        admission = Admission(config, model, tokenizer, self.members)
        door = Door(config, access.keys.caller_of, accounting)
        openai = OpenAiFront(config, door, tokenizer, admission, self._dispatcher, tracing)
        self._fronts = Fronts(
            door,
            openai,
            ResponsesFront(openai, tokenizer, admission),
            TokensFront(door, model, tokenizer, admission),
        )
        for surface, identity in (("front", access.front), ("link", access.link)):
            if identity is not None:
                metrics.certificate_expiry.of(surface=surface).set_function(identity.expires_at)
        self._grpc = _client_server(config, access.front, metrics)
        stall_s = config.client_stall_s
        serval = ServalService(
            model, tokenizer, admission, self._dispatcher, accounting, access.keys.caller_of, stall_s, tracing
        )
        serval_pb2_grpc.add_ServalServicer_to_server(serval, self._grpc.server)
        false_role = metrics.tls_refusals.of(surface="link").inc
        link = RouterLinkService(self.members, self._dispatcher, config.worker_silence_s, false_role)
        self._link = _link_server(config, access.link, metrics)
        cluster_pb2_grpc.add_RouterLinkServicer_to_server(link, self._link.server)
        self._janitors: list[asyncio.Task[None]] = []

    async def start(self) -> BoundPorts:
        config = self._config
        grpc_port = await self._listen(self._grpc, "grpc_port", config.grpc_port)
        link_port = await self._listen(self._link, "link_port", config.link_port)
        self._me.address = f"{config.host}:{link_port}"
        status = Status(self.members, self._dispatcher, config.name, f"{config.host}:{self._http.port}", config.tls is not None)
        started_at, needs_key = int(time.time()), config.keys_file is not None
        dashboard = Dashboard(config, self.members, self._metrics, status.why_not_ready, started_at)
        app = build_app(self._fronts, status, dashboard.document, self._model, self._metrics, started_at, needs_key)
        await self._http.start(with_shortcuts(app, self._fronts))
        self._janitors = [
            asyncio.create_task(self._watch(), name="router-janitor"),
            asyncio.create_task(self._keys.watch(), name="keys-watch"),
        ]
        ports = BoundPorts(http=self._http.port, grpc=grpc_port, link=link_port)
        logger.info("%s: HTTP %d, gRPC %d, workers %d, model %s", config.host, ports.http, grpc_port, link_port, config.model)
        return ports

    def _server_load(self) -> ServerLoad:
        dispatcher = self._dispatcher
        return server_load(self._model.name, dispatcher.open_requests, dispatcher.waiting_requests, self.members)

    def _take_tenants(self) -> None:
        """The keys file's limits win over the configured ones."""
        self._dispatcher.tenants.set_limits(self._keys.tenants)

    async def _listen(self, server: GrpcServer, field: str, port: int) -> int:
        try:
            return await server.start(self._config.host, port)
        except ConfigError as error:
            raise ConfigError(f"{field}: {error}") from error

    def pool_load(self, window_s: float) -> ClusterLoad:
        return self._dispatcher.loads.read(window_s)

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
        for janitor in self._janitors:
            janitor.cancel()

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
            overdue = self.members.overdue(loop.time(), self._config.worker_silence_s, self._config.worker_stall_s)
            for worker, reason, has_died in overdue:
                try:
                    self.members.leave(worker, reason, has_died=has_died)
                except Exception:  # the others are still watched
                    logger.exception("%s %s: %s", worker.pool, worker.name, reason)


def _client_server(config: RouterConfig, tls: TlsIdentity | None, metrics: Metrics) -> GrpcServer:
    return GrpcServer(
        [_CLIENT_SERVICE],
        max_receive_bytes=config.max_body_bytes,
        max_streams=config.max_streams_per_connection,
        handshake_timeout_s=config.header_timeout_s,
        tls=tls,
        on_handshake=metrics.tls_handshakes.of(surface="grpc").inc,
    )


def _link_server(config: RouterConfig, tls: TlsIdentity | None, metrics: Metrics) -> GrpcServer:
    if tls is None:
        return GrpcServer([_LINK_SERVICE])
    guard = PeerGuard([_LINK_SERVICE], ["prefill", "decode"], metrics.tls_refusals.of(surface="link").inc)
    return GrpcServer(
        [_LINK_SERVICE],
        handshake_timeout_s=config.header_timeout_s,
        tls=tls,
        guard=guard,
        on_handshake=metrics.tls_handshakes.of(surface="link").inc,
    )
