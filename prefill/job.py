"""One prompt in hand at a prefill worker: what was asked, how far it is, and how it ended."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from engine.sequence import Sequence, SequenceUpdate
from kvtransfer.transfer import SendResult, Transfer
from protocol import cluster_pb2
from protocol.errors import ServalError, TransferAborted
from protocol.ids import Incarnation, LeaseId
from protocol.lifecycle import Lifecycle, Role
from protocol.outcomes import Outcome
from telemetry import span_names
from telemetry.tracing import NO_SPAN, Span, Value
from worker.hold import Point, layers_at


@dataclass(eq=False)
class Job:
    """One prompt. The engine thread makes `transfer` at the first layer; the rest belongs to the event loop."""

    request: cluster_pb2.PrefillRequest
    sequence: Sequence
    span: Span
    computed: asyncio.Future[SequenceUpdate]
    lifecycle: Lifecycle = field(default_factory=lambda: Lifecycle(Role.PREFILL))
    accepted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    cached_tokens: int = 0
    transfer: Transfer | None = None
    transfer_span: Span = NO_SPAN
    refused: ServalError | None = None
    is_aborted: bool = False
    """The decode worker no longer wants it: where the engine has not got it yet, it must not."""
    told_s: float = 0.0
    """Seconds of the engine that the decode worker was told of."""
    tellers: int = 1
    """Who can still tell it more: the call itself, and those that abort it."""
    is_submitted: bool = False
    """The engine has it, so `computed` will be set."""

    @property
    def decode_incarnation(self) -> Incarnation:
        return Incarnation(self.request.decode_incarnation)

    @property
    def router(self) -> Incarnation:
        """Whose request it is."""
        return Incarnation(self.request.router_incarnation)

    @property
    def untold_s(self) -> float:
        """Seconds of the engine that nobody knows of yet."""
        return self.sequence.busy_s - self.told_s

    @property
    def lease_id(self) -> LeaseId:
        return LeaseId(self.request.lease.lease_id)

    def is_at(self, point: Point, layer: int) -> bool:
        """Whether `layer` is the one to be held at for that third, and whole."""
        transfer = self.transfer
        return transfer is not None and layer + 1 == layers_at(point, transfer.layers) and transfer.is_ready(layer)

    def facts(self) -> dict[str, Any]:
        """What a test is told of it (worker/hold.py)."""
        return {
            "state": str(self.lifecycle.state),
            "prompt_tokens": len(self.sequence.prompt),
            "kv_blocks": len(self.sequence.blocks),
            "layers_sent": self.transfer.layers_sent if self.transfer is not None else 0,
            "peer": f"{self.decode_incarnation:x}",
        }

    def end_spans(self, result: SendResult | None) -> None:
        """`result`: how the transfer ended, if there was one."""
        if result is not None:
            figures: dict[str, Value] = {
                span_names.TRANSFER_BYTES: result.bytes,
                span_names.TRANSFER_WRITES: result.writes,
                span_names.TRANSFER_DESCRIPTORS: result.descriptors,
                span_names.TRANSFER_S: result.seconds,
                span_names.TRANSFER_EXPOSED_S: result.exposed_s,
                span_names.QUIESCED: result.quiesced,
            }
            self.transfer_span.end(_outcome_of(result.error), figures)
        prompt: dict[str, Value] = {
            span_names.REQUEST_ID: self.request.request_id,
            span_names.PROMPT_TOKENS: len(self.sequence.prompt),
            span_names.CACHED_TOKENS: self.cached_tokens,
            span_names.QUEUE_S: max(0.0, self.started_at - self.accepted_at),
        }
        self.span.end(self._outcome(result), prompt)

    def _outcome(self, result: SendResult | None) -> Outcome | None:
        if not self.computed.done():
            return Outcome.INTERNAL
        update = self.computed.result()
        if update.error is not None:
            return update.error.outcome
        if not update.token_ids:
            return Outcome.CANCELLED
        return Outcome.TRANSFER_FAILED if result is None else _outcome_of(result.error)


def _outcome_of(error: ServalError | None) -> Outcome | None:
    """None: it went well. An abort is the decode worker's wish, not a failure."""
    if error is None:
        return None
    return Outcome.CANCELLED if isinstance(error, TransferAborted) else error.outcome
