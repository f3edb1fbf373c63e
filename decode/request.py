"""One request at the decode worker: what was asked, what is held for it, how long each part took."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.sequence import Sequence
from kvtransfer.lease import Landed, Lease
from protocol import cluster_pb2, serval_pb2
from protocol.ids import Incarnation, RequestId, RequestNumber
from protocol.lifecycle import Lifecycle, Role
from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from telemetry import span_names
from telemetry.tracing import Span, TraceContext, Tracing, Value
from worker.router_link import RouterLink

ATTEMPT = 1
"""A request makes one remote attempt; what fails is computed here. The router's retry elsewhere is a new request to us."""


@dataclass(eq=False)
class DecodeRequest:
    """Owned by the event loop. `sequence` holds the KV blocks from the reservation on; `lease` the landing slot."""

    link: RouterLink
    router: Incarnation
    """The process at the link's other end when it came."""
    number: RequestNumber
    request_id: RequestId
    sequence: Sequence
    prefill: cluster_pb2.Peer | None
    deadline: float
    """time.monotonic() at which the request is over."""
    span: Span
    attempt: int = ATTEMPT
    lifecycle: Lifecycle = field(default_factory=lambda: Lifecycle(Role.DECODE))
    lease: Lease | None = None
    cached_tokens: int = 0
    timings: cluster_pb2.Timings = field(default_factory=cluster_pb2.Timings)
    arrived_at: float = field(default_factory=time.monotonic)
    decode_started_at: float | None = None
    told_s: float = 0.0
    """Seconds of the engine here that its end told the router."""
    is_given_up: bool = False
    """Its router's stream is gone. What is said on a later one would be taken for another request's of that number."""

    def __repr__(self) -> str:
        return f"<DecodeRequest {self.request_id} {self.lifecycle.state}>"

    @classmethod
    def from_submit(cls, link: RouterLink, submit: cluster_pb2.Submit, key: str, tracing: Tracing) -> "DecodeRequest":
        """`key` names the sequence to the engine; request ids come from clients and may repeat."""
        params = SamplingParams.from_proto(submit.sampling, default_max_tokens=16)
        begin = len(submit.prompt) - submit.output_tokens
        return cls(
            link=link,
            router=link.router,
            number=RequestNumber(submit.request),
            request_id=RequestId(submit.request_id),
            sequence=Sequence(key, list(submit.prompt[:begin]), params, output=list(submit.prompt[begin:])),
            prefill=submit.prefill if submit.HasField("prefill") else None,
            deadline=time.monotonic() + submit.timeout_s,
            span=tracing.start(span_names.DECODE, TraceContext(submit.traceparent, submit.tracestate)),
        )

    @property
    def untold_s(self) -> float:
        """Seconds of the engine here that the router does not know of."""
        return self.sequence.busy_s - self.told_s

    def facts(self) -> dict[str, Any]:
        """What a test is told of it (worker/hold.py)."""
        return {
            "state": str(self.lifecycle.state),
            "prompt_tokens": len(self.sequence.prompt),
            "output_tokens": len(self.sequence.output),
            "kv_blocks": len(self.sequence.blocks),
            "has_landing_slot": self.lease is not None,
            "peer": f"{self.prefill.incarnation:x}" if self.prefill is not None else "",
        }

    def prefill_call(self, decode_incarnation: Incarnation, block_size: int) -> cluster_pb2.PrefillRequest:
        """What the prefill worker is asked for under `lease`."""
        assert self.prefill is not None and self.lease is not None
        return cluster_pb2.PrefillRequest(
            request_id=self.request_id,
            attempt=self.attempt,
            decode_incarnation=decode_incarnation,
            router_incarnation=self.router,
            prefill_incarnation=self.prefill.incarnation,
            prompt=self.sequence.tokens,
            output_tokens=len(self.sequence.output),
            sampling=self.sequence.params.to_proto(),
            first_block=self.sequence.num_computed // block_size,
            lease=self.lease.to_proto(),
            traceparent=self.span.context.traceparent,
            tracestate=self.span.context.tracestate,
        )

    def note_first_token(self, first: cluster_pb2.FirstToken, started: cluster_pb2.Started | None) -> None:
        """What the prefill worker says that it took."""
        self.timings.prefill_s = first.prefill_s
        self.timings.prefill_busy_s = first.busy_s
        if started is not None:
            self.timings.prefill_queue_s = started.queue_s
            self.cached_tokens = max(self.cached_tokens, started.cached_tokens)

    def note_landed(self, landed: Landed, first_token_at: float) -> float:
        """Returns the seconds for which the transfer kept the request waiting."""
        self.timings.transfer_s = landed.last_verified_s - landed.first_landed_s
        self.timings.transfer_exposed_s = max(0.0, landed.last_verified_s - first_token_at)
        self.timings.transfer_bytes = landed.bytes
        return self.timings.transfer_exposed_s

    def tell(self, output: cluster_pb2.RequestOutput) -> None:
        """Sends it to whoever asked, on the stream on which that was."""
        if not self.is_given_up:
            self.link.send([output])

    def output(
        self,
        token_ids: Iterable[int],
        logprobs: Iterable[serval_pb2.TokenLogprobs],
        ended: cluster_pb2.Ended | None = None,
        prompt_logprobs: Iterable[serval_pb2.TokenLogprobs] = (),
    ) -> cluster_pb2.RequestOutput:
        return cluster_pb2.RequestOutput(
            request=self.number, token_ids=token_ids, logprobs=logprobs, ended=ended, prompt_logprobs=prompt_logprobs
        )

    def ended(self, outcome: Outcome, message: str = "", *, handed_back: bool = False) -> cluster_pb2.Ended:
        """The last word on this request; said once. `handed_back`: it may go on elsewhere from what was sent."""
        if self.decode_started_at is not None:
            self.timings.decode_s = time.monotonic() - self.decode_started_at
        self.timings.decode_busy_s = self.sequence.busy_s
        if not self.is_given_up:
            self.told_s = self.timings.decode_busy_s
        self.span.end(outcome, self._figures() if self.span.is_recording else None)
        return cluster_pb2.Ended(
            outcome=str(outcome),
            message=message,
            cached_tokens=self.cached_tokens,
            timings=self.timings,
            handed_back=handed_back,
        )

    def _figures(self) -> dict[str, Value]:
        timings = self.timings
        return {
            span_names.REQUEST_ID: self.request_id,
            span_names.PROMPT_TOKENS: len(self.sequence.prompt),
            span_names.CACHED_TOKENS: self.cached_tokens,
            span_names.OUTPUT_TOKENS: len(self.sequence.output),
            span_names.DRAFTED_TOKENS: self.sequence.drafted_tokens,
            span_names.ACCEPTED_TOKENS: self.sequence.accepted_tokens,
            span_names.PREFILL_WORKER: self.prefill.name if self.prefill is not None else "",
            span_names.PREFILLED_LOCALLY: timings.prefilled_locally,
            span_names.QUEUE_S: timings.queue_s,
            span_names.DECODE_S: timings.decode_s,
            span_names.TRANSFER_S: timings.transfer_s,
            span_names.TRANSFER_EXPOSED_S: timings.transfer_exposed_s,
            span_names.TRANSFER_BYTES: timings.transfer_bytes,
        }
