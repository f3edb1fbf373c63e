"""Spans of one process, sent to an OpenTelemetry collector.

    tracing = Tracing.of(config, role="decode", name="decode-0")
    span = tracing.start("decode", TraceContext(submit.traceparent, submit.tracestate))
    span.set({"serval.prompt_tokens": 12})
    span.end(Outcome.STOP)

Off, which is the default, no span exists and OpenTelemetry is not even imported. Spans are sent in batches by a thread of their
own; one that cannot be sent is dropped, and a request never waits for it. Nothing that a client wrote goes into a span.
Source: OpenTelemetry Python SDK 1.45; W3C Trace Context.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from protocol.outcomes import Outcome
from telemetry.config import TracingConfig
from telemetry.span_names import ERROR_TYPE, OUTCOME

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

CLOSE_TIMEOUT_S = 2.0

Value = str | bool | int | float | Sequence[str]

_CALLERS_DOING = (Outcome.CANCELLED, Outcome.INVALID, Outcome.UNAUTHENTICATED, Outcome.RATE_LIMITED)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C's two headers, which name a span to another process. An empty `traceparent`: there is none."""

    traceparent: str = ""
    tracestate: str = ""


NO_CONTEXT = TraceContext()


class Span:
    """One span; without an inner one it does nothing. The first `end` counts: later ones find it ended."""

    __slots__ = ("_has_ended", "_inner", "context")

    def __init__(self, inner: "trace.Span | None" = None, context: TraceContext = NO_CONTEXT) -> None:
        self._inner = inner
        self._has_ended = False
        self.context = context
        """What children in this and in other processes begin from; also set on a span that is not sampled."""

    @property
    def is_recording(self) -> bool:
        """False where attributes would be for nobody: then do not gather them."""
        return self._inner is not None and self._inner.is_recording()

    def set(self, attributes: Mapping[str, Value]) -> None:
        if self._inner is not None:
            self._inner.set_attributes(attributes)

    def end(self, outcome: Outcome | None, attributes: Mapping[str, Value] | None = None) -> None:
        """The outcome is the status: an error, unless the request succeeded or it failed by its caller's doing. None: this part of
        a request succeeded; how the whole ends is not known here."""
        if self._inner is None or self._has_ended:
            return
        from opentelemetry.trace import StatusCode

        self._has_ended = True
        self._inner.set_attributes(attributes or {})
        if outcome is not None:
            self._inner.set_attribute(OUTCOME, str(outcome))
        if outcome is None or outcome.is_success:
            self._inner.set_status(StatusCode.OK)
        else:
            self._inner.set_attribute(ERROR_TYPE, str(outcome))
            if outcome not in _CALLERS_DOING:
                self._inner.set_status(StatusCode.ERROR, str(outcome))
        self._inner.end()


NO_SPAN = Span()


class Tracing:
    """All spans of one process. Safe to use from any thread."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("serval") if provider is not None else None

    @classmethod
    def of(cls, config: TracingConfig, role: str, name: str) -> "Tracing":
        return cls(_provider(config, role, name) if config.is_on else None)

    def start(
        self,
        name: str,
        parent: TraceContext = NO_CONTEXT,
        attributes: Mapping[str, Value] | None = None,
        kind: Literal["server", "internal"] = "server",
    ) -> Span:
        """A span that begins now, below `parent`; where that is empty or malformed, it begins a trace."""
        if self._tracer is None:
            return NO_SPAN
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        headers = {"traceparent": parent.traceparent, "tracestate": parent.tracestate}
        inner = self._tracer.start_span(
            name,
            context=propagator.extract(headers),
            kind=SpanKind.SERVER if kind == "server" else SpanKind.INTERNAL,
            attributes=attributes,
        )
        own: dict[str, str] = {}
        propagator.inject(own, set_span_in_context(inner))
        return Span(inner, TraceContext(own.get("traceparent", ""), own.get("tracestate", "")))

    def close(self) -> None:
        """Sends what has ended and is not sent yet, for at most CLOSE_TIMEOUT_S: a collector that is away stops nobody."""
        if self._provider is None:
            return
        # The SDK's own shutdown waits up to half a minute and takes no deadline.
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


OFF = Tracing()


def _provider(config: TracingConfig, role: str, name: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    service = config.service_name or os.environ.get("OTEL_SERVICE_NAME") or "serval"
    resource = Resource.create({SERVICE_NAME: f"{service}-{role}", SERVICE_INSTANCE_ID: name})
    sampler = None if config.sample_ratio is None else ParentBasedTraceIdRatio(config.sample_ratio)
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(config.otlp_endpoint)))
    return provider
