"""An OpenTelemetry collector for tests: takes spans over OTLP's gRPC protocol and keeps them."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class CollectedSpan:
    """One span as it arrived. Ids are in hex; `service` and `instance` say which process it is of."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    instance: str
    start_ns: int
    end_ns: int
    status: str
    attributes: dict[str, Any]


class OtlpCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on loopback while entered; `url` is what an exporter is told."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._spans: list[CollectedSpan] = []
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4, thread_name_prefix="collector"))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "OtlpCollector":
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop(grace=None).wait(5)

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._news:
            for resource in request.resource_spans:
                about = {each.key: _value(each.value) for each in resource.resource.attributes}
                self._spans += [_collected(span, about) for scope in resource.scope_spans for span in scope.spans]
            self._news.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(
        self, condition: Callable[[list[CollectedSpan]], bool], what: str, timeout_s: float = 20.0
    ) -> list[CollectedSpan]:
        """All spans so far, as soon as `condition` holds of them."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not condition(self._spans):
                assert self._news.wait(deadline - time.monotonic()), f"not within {timeout_s:g} s: {what}; have {self._spans}"
            return list(self._spans)

    def of_trace(self, trace_id: str, *names: str) -> list[CollectedSpan]:
        """The spans of one trace, in order of their start, once those of these names are there; a name may be given twice."""

        def mine(spans: list[CollectedSpan]) -> list[CollectedSpan]:
            return sorted((span for span in spans if span.trace_id == trace_id), key=lambda span: span.start_ns)

        wanted = Counter(names)
        found = self.wait_for(
            lambda spans: wanted <= Counter(span.name for span in mine(spans)), f"{names} of trace {trace_id}"
        )
        return mine(found)


def _collected(span: trace_pb2.Span, about: dict[str, Any]) -> CollectedSpan:
    return CollectedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        service=about["service.name"],
        instance=about["service.instance.id"],
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        attributes={each.key: _value(each.value) for each in span.attributes},
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
