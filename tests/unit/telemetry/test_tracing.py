"""Spans: whom they belong to, how they end, and that nothing is there when nobody traces."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError

from protocol.outcomes import Outcome
from telemetry import span_names, tracing
from telemetry.config import TracingConfig
from telemetry.tracing import NO_SPAN, OFF, TraceContext, Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-2] + "00"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider)
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


class TestContext:
    def test_a_span_goes_below_the_one_that_the_headers_name(self, traced: Tracing, exporter: InMemorySpanExporter) -> None:
        span = traced.start("decode", TraceContext(PARENT, "vendor=value"))
        span.end(Outcome.STOP)
        ended = only(exporter)
        assert ended.parent is not None and f"{ended.parent.span_id:016x}" == "b7ad6b7169203331"
        assert span.context.traceparent == f"00-0af7651916cd43dd8448eb211c80319c-{ended.context.span_id:016x}-01"
        assert span.context.tracestate == "vendor=value"
        assert ended.kind is SpanKind.SERVER

    @pytest.mark.parametrize(
        "header", ["", "nonsense", PARENT[:-3], PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)]
    )
    def test_a_malformed_header_begins_a_trace(self, traced: Tracing, exporter: InMemorySpanExporter, header: str) -> None:
        span = traced.start("decode", TraceContext(header))
        span.end(Outcome.STOP)
        assert only(exporter).parent is None
        assert len(span.context.traceparent) == len(PARENT)

    def test_what_the_client_does_not_sample_is_passed_on_and_not_recorded(
        self, traced: Tracing, exporter: InMemorySpanExporter
    ) -> None:
        span = traced.start("decode", TraceContext(NOT_SAMPLED))
        assert not span.is_recording
        child = traced.start("prefill", span.context)
        for each in (child, span):
            each.end(Outcome.STOP)
        assert not exporter.get_finished_spans()
        assert child.context.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert child.context.traceparent.endswith("-00")


class TestEnd:
    @pytest.mark.parametrize("outcome", [Outcome.STOP, Outcome.LENGTH])
    def test_a_success_is_ok(self, traced: Tracing, exporter: InMemorySpanExporter, outcome: Outcome) -> None:
        traced.start("decode").end(outcome, {span_names.CACHED_TOKENS: 3})
        ended = only(exporter)
        assert ended.status.status_code is StatusCode.OK
        assert ended.attributes == {span_names.OUTCOME: str(outcome), span_names.CACHED_TOKENS: 3}

    @pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if not outcome.is_success])
    def test_a_failure_is_named(self, traced: Tracing, exporter: InMemorySpanExporter, outcome: Outcome) -> None:
        traced.start("decode").end(outcome)
        ended = only(exporter)
        assert ended.attributes == {span_names.OUTCOME: str(outcome), span_names.ERROR_TYPE: str(outcome)}
        callers = outcome in (Outcome.CANCELLED, Outcome.INVALID, Outcome.UNAUTHENTICATED, Outcome.RATE_LIMITED)
        assert ended.status.status_code is (StatusCode.UNSET if callers else StatusCode.ERROR)

    def test_a_part_that_went_well_has_no_outcome(self, traced: Tracing, exporter: InMemorySpanExporter) -> None:
        traced.start("kv_transfer", kind="internal").end(None)
        ended = only(exporter)
        assert (ended.status.status_code, ended.kind, dict(ended.attributes or {})) == (StatusCode.OK, SpanKind.INTERNAL, {})

    def test_only_the_first_counts(self, traced: Tracing, exporter: InMemorySpanExporter) -> None:
        span = traced.start("decode")
        span.end(Outcome.DEADLINE)
        span.end(Outcome.STOP, {span_names.CACHED_TOKENS: 3})
        assert only(exporter).attributes == {span_names.OUTCOME: "deadline", span_names.ERROR_TYPE: "deadline"}


class TestOff:
    def test_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        assert not TracingConfig().is_on
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
        assert TracingConfig().is_on
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        assert not TracingConfig(otlp_endpoint="http://127.0.0.1:4317").is_on

    def test_costs_no_import_and_no_span(self) -> None:
        code = (
            "import sys; from telemetry.tracing import *; from telemetry.config import TracingConfig;"
            "span = Tracing.of(TracingConfig(), 'decode', 'decode-0').start('decode');"
            "span.set({'a': 1}); span.end(None); assert span is NO_SPAN;"
            "assert not any(name.startswith(('opentelemetry', 'grpc')) for name in sys.modules), sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={"PATH": "/usr/bin"})

    def test_has_no_context(self) -> None:
        span = OFF.start("decode", TraceContext(PARENT))
        assert span is NO_SPAN
        assert span.context == TraceContext("", "")
        OFF.close()


@pytest.mark.parametrize("wrong", ["127.0.0.1:4317", "ftp://host:1", "http://", "nonsense"])
def test_an_endpoint_is_a_url(wrong: str) -> None:
    with pytest.raises(ValidationError, match="must be a URL"):
        TracingConfig(otlp_endpoint=wrong)


def test_close_waits_for_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            released.wait(30)
            return SpanExportResult.FAILURE

    monkeypatch.setattr(tracing, "CLOSE_TIMEOUT_S", 0.2)
    released = threading.Event()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Stuck()))
    traced = Tracing(provider)
    traced.start("decode").end(None)
    started = time.monotonic()
    traced.close()
    assert 0.15 < time.monotonic() - started < 2
    released.set()


def test_the_words_are_the_conventions_own() -> None:
    theirs = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_") and isinstance(value, str)}
    ours = {value for value in vars(span_names).values() if isinstance(value, str) and value.startswith("gen_ai.")}
    assert ours and ours <= theirs
