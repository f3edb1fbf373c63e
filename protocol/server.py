"""The frame of every gRPC server of ours: standard health, reflection, limits, TLS."""

from collections.abc import Callable, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protocol.errors import ConfigError
from protocol.malformed import RefuseMalformed
from protocol.peer_guard import PeerGuard
from protocol.tls import TlsIdentity

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a taken port is an error: two servers would share its connections in silence
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Peers ping as well; the default would answer GOAWAY to more than one ping in five minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.max_send_message_length", 64 << 20),
)


class GrpcServer:
    """A grpc.aio server with grpc.health.v1 and reflection over `services` (full names).

    Add servicers to `server`, then `await start(host, port)`. Health says NOT_SERVING until then and again from `drain()`.
    With `tls` nothing is answered in plain text; `on_handshake` is called for each connection that begins, on another thread.
    """

    def __init__(
        self,
        services: Sequence[str],
        *,
        max_receive_bytes: int = 64 << 20,
        max_streams: int | None = None,
        handshake_timeout_s: float = 10.0,
        tls: TlsIdentity | None = None,
        guard: PeerGuard | None = None,
        on_handshake: Callable[[], None] = lambda: None,
    ) -> None:
        self._names = ("", *services)
        self._credentials = tls.server_credentials(on_handshake) if tls else None
        limits = [
            ("grpc.max_receive_message_length", max_receive_bytes),
            ("grpc.server_handshake_timeout_ms", round(handshake_timeout_s * 1000)),
        ]
        if max_streams is not None:
            limits.append(("grpc.max_concurrent_streams", max_streams))
        interceptors = (guard, RefuseMalformed()) if guard else (RefuseMalformed(),)
        self.server = grpc.aio.server(options=(*SERVER_OPTIONS, *limits), interceptors=interceptors)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server)

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the bound port. Raises ConfigError when the port is taken."""
        try:
            if self._credentials is None:
                bound = self.server.add_insecure_port(f"{host}:{port}")
            else:
                bound = self.server.add_secure_port(f"{host}:{port}", self._credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {host}:{port}") from error
        await self.server.start()
        await self._set(health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def drain(self) -> None:
        """From now on health says NOT_SERVING, whatever comes; open calls go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        await self.server.stop(grace_s)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for name in self._names:
            await self._health.set(name, status)
