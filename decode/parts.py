"""What all requests of a decode worker share."""

from dataclasses import dataclass

from decode.admission import AdmissionLine
from decode.config import DecodeConfig
from decode.prefill_client import PrefillPeers
from decode.quarantine import Quarantine
from engine.engine import Engine
from engine.loop import EngineLoop
from kvtransfer.receiver import Receiver
from protocol.ids import Incarnation
from telemetry.metrics import Metrics
from telemetry.tracing import Tracing


@dataclass(frozen=True)
class Parts:
    """Made once by the worker."""

    incarnation: Incarnation
    engine: Engine
    engine_loop: EngineLoop
    receiver: Receiver
    peers: PrefillPeers
    quarantine: Quarantine
    line: AdmissionLine
    config: DecodeConfig
    metrics: Metrics
    tracing: Tracing
