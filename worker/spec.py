"""What a worker process is told at its start."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from protocol.tls import TlsIdentity
from telemetry.tracing import OFF, Tracing
from worker.config import HealthConfig, LinkConfig

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total) while a model loads."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


@dataclass(frozen=True)
class WorkerSpec:
    """`host` is what the gRPC server listens on and what peers dial, on `port` (0: any free one). `routers` are host:port, or
    dns:name:port for every address behind the name. `metrics_address` is where this process serves /metrics. With `tls` this
    process and its peers show each other who they are; without it nobody is asked."""

    name: str
    host: str
    routers: tuple[str, ...]
    model: str
    model_dir: Path
    engine: EngineConfig
    transfer: TransferConfig
    link: LinkConfig
    port: int = 0
    health: HealthConfig = field(default_factory=HealthConfig)
    metrics_address: str = ""
    tls: TlsIdentity | None = None
    tracing: Tracing = OFF
    progress: Progress = silent

    def report_weights(self, done: int, total: int) -> None:
        """The engine's progress while it loads, passed on."""
        self.progress("loading weights", done, total)
