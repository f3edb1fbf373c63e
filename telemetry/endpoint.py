"""The worker's /metrics endpoint: a plain HTTP server on its own thread, so a busy event loop still answers a scrape."""

from prometheus_client import start_http_server

from telemetry.metrics import Metrics


class MetricsEndpoint:
    """Serves `metrics` on host:port (port 0: any free one). `address` is what it listens on."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, addr=host, registry=metrics.registry)
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
