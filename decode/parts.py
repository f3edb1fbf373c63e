"""What all requests of a decode worker share."""

from dataclasses import dataclass, field

from decode.admission import AdmissionLine
from decode.break_even import BreakEven
from decode.config import DecodeConfig
from decode.pairs import Pairs
from decode.prefill_client import PrefillPeers
from decode.quarantine import Quarantine
from engine.engine import Engine
from engine.loop import EngineLoop
from kvtransfer.receiver import Receiver
from protocol.ids import Incarnation
from telemetry.metrics import Metrics
from telemetry.recent import RecentRate
from telemetry.tracing import Tracing
from worker.busy_book import BusyBook
from worker.hold import Hold


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
    break_even: BreakEven
    transfers: RecentRate
    """KV bytes landed per second that a request had to wait for them: what overlap hides costs nothing."""
    config: DecodeConfig
    metrics: Metrics
    tracing: Tracing
    hold: Hold
    pairs: Pairs
    busy_book: BusyBook = field(default_factory=BusyBook)
