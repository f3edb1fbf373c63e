"""One request's spans over three processes, as an OpenTelemetry collector gets them."""

from collections.abc import Iterator

import grpc.aio
import httpx
import pytest
from cluster_clients import Ask
from cluster_harness import ClusterSpec, RunningCluster, client
from cluster_shared import Clusters
from otlp_collector import CollectedSpan, OtlpCollector

from protocol import serval_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

TRACE = "0af7651916cd43dd8448eb211c8031"
SECRET = "xylophone"
CALL = "text_completion tiny"
ALL = (CALL, "decode", "prefill", "kv_transfer")


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(clusters: Clusters, tiny_spec: ClusterSpec, collector: OtlpCollector) -> Iterator[RunningCluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds; the SDK's own setting holds
        cluster = clusters.start(tiny_spec.with_settings(tracing__otlp_endpoint=collector.url))
    try:
        yield cluster
    finally:
        cluster.stop()


def parent(number: int, sampled: bool = True) -> tuple[str, str]:
    """A trace's id, and the header by which a client says that its span b7ad6b7169203331 of it is the parent."""
    trace_id = f"{TRACE}{number:02x}"
    return trace_id, f"00-{trace_id}-b7ad6b7169203331-{'01' if sampled else '00'}"


def body(cluster: RunningCluster, **more: object) -> dict[str, object]:
    fixed = {"model": cluster.model, "prompt": f"{SECRET} " * 8, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    return {**fixed, **more}


async def complete(cluster: RunningCluster, traceparent: str, **more: object) -> httpx.Response:
    async with client() as http:
        ask = body(cluster, **more)
        return await http.post(f"{cluster.url}/v1/completions", json=ask, headers={"traceparent": traceparent})


def tree(spans: list[CollectedSpan]) -> dict[str, CollectedSpan]:
    """By name, of which each is there once."""
    by_name = {span.name: span for span in spans}
    assert len(by_name) == len(spans)
    return by_name


async def test_one_request_is_one_tree_over_three_processes(traced: RunningCluster, collector: OtlpCollector) -> None:
    trace_id, header = parent(1)
    answer = await complete(traced, header)
    spans = tree(collector.of_trace(trace_id, *ALL))

    call, decode = spans[CALL], spans["decode"]
    prefill, transfer = spans["prefill"], spans["kv_transfer"]
    assert call.parent_id == "b7ad6b7169203331"
    assert [decode.parent_id, prefill.parent_id, transfer.parent_id] == [call.span_id, decode.span_id, prefill.span_id]
    assert [span.service for span in (call, decode, prefill, transfer)] == [
        "serval-router", "serval-decode", "serval-prefill", "serval-prefill",
    ]  # fmt: skip
    assert [call.instance, decode.instance, prefill.instance] == ["router", "decode-0", "prefill-0"]
    assert {span.status for span in spans.values()} == {"OK"}
    assert call.start_ns <= decode.start_ns <= prefill.start_ns <= transfer.start_ns
    assert decode.end_ns <= call.end_ns
    assert answer.headers["traceparent"] == f"00-{trace_id}-{call.span_id}-01"


async def test_they_say_what_the_conventions_ask_for(traced: RunningCluster, collector: OtlpCollector) -> None:
    trace_id, header = parent(2)
    answer = (await complete(traced, header, prompt=f"{SECRET} again " * 8)).json()
    spans = tree(collector.of_trace(trace_id, *ALL))

    call = spans[CALL].attributes
    assert call["gen_ai.operation.name"] == "text_completion"
    assert call["gen_ai.request.model"] == traced.model
    assert call["gen_ai.request.max_tokens"] == 6
    assert call["gen_ai.request.temperature"] == 0
    assert call["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert call["gen_ai.usage.output_tokens"] == 6
    assert call["gen_ai.response.finish_reasons"] == ["length"]
    assert call["gen_ai.response.time_to_first_chunk"] > 0
    assert (call["serval.outcome"], call["serval.decode_workers"]) == ("length", ["decode-0"])

    decode = spans["decode"].attributes
    assert decode["serval.prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert (decode["serval.outcome"], decode["serval.output_tokens"]) == ("length", 6)
    assert not decode["serval.prefilled_locally"]
    assert decode["serval.transfer_bytes"] == spans["kv_transfer"].attributes["serval.transfer_bytes"] > 0
    assert "serval.transfer_exposed_s" in decode
    assert SECRET not in repr(list(spans.values()))


async def test_a_refused_call_is_a_span_of_its_own(traced: RunningCluster, collector: OtlpCollector) -> None:
    trace_id, header = parent(3)
    answer = await complete(traced, header, max_tokens=-1)
    assert answer.status_code == 400
    (call,) = collector.of_trace(trace_id, CALL)
    assert (call.status, call.attributes["serval.outcome"], call.attributes["error.type"]) == ("UNSET", "invalid", "invalid")
    assert answer.headers["traceparent"] == f"00-{trace_id}-{call.span_id}-01"


async def test_a_client_that_goes_away_ends_every_span(traced: RunningCluster, collector: OtlpCollector) -> None:
    trace_id, header = parent(4)
    ask = body(traced, max_tokens=4000, stream=True)
    async with client() as http:
        stream = http.stream("POST", f"{traced.url}/v1/completions", json=ask, headers={"traceparent": header})
        async with stream as response:
            async for _ in response.aiter_lines():
                break
    spans = tree(collector.of_trace(trace_id, *ALL))
    assert spans["decode"].attributes["serval.outcome"] == "cancelled"
    assert spans[CALL].attributes["serval.outcome"] == "cancelled"
    assert spans["prefill"].status == "OK"
    await traced.assert_idle()


async def test_two_answers_are_two_decode_spans(traced: RunningCluster, collector: OtlpCollector) -> None:
    trace_id, header = parent(5)
    assert len((await complete(traced, header, n=2, temperature=1)).json()["choices"]) == 2
    spans = collector.of_trace(trace_id, CALL, "decode", "decode")
    (call,) = [span for span in spans if span.service == "serval-router"]
    assert [span.parent_id for span in spans if span.name == "decode"] == [call.span_id] * 2
    assert call.attributes["gen_ai.request.choice.count"] == 2
    assert len(call.attributes["gen_ai.response.finish_reasons"]) == 2


async def test_over_grpc(traced: RunningCluster, collector: OtlpCollector) -> None:
    trace_id, header = parent(6)
    ask = Ask.greedy([7] * 40, 4, ignore_eos=True)
    async with grpc.aio.insecure_channel(traced.grpc) as channel:
        call = serval_pb2_grpc.ServalStub(channel).Generate(ask.to_proto(), metadata=[("traceparent", header)], timeout=30)
        given_back = dict(await call.initial_metadata())["traceparent"]
        async for _ in call:
            pass
    spans = tree(collector.of_trace(trace_id, *ALL))
    root = spans[CALL]
    assert root.parent_id == "b7ad6b7169203331"
    assert given_back == f"00-{trace_id}-{root.span_id}-01"


async def test_what_the_client_does_not_sample_is_not_sent(traced: RunningCluster, collector: OtlpCollector) -> None:
    quiet_id, quiet = parent(7, sampled=False)
    loud_id, loud = parent(8)
    answer = await complete(traced, quiet)
    assert answer.headers["traceparent"].startswith(f"00-{quiet_id}-")
    assert answer.headers["traceparent"].endswith("-00")
    await complete(traced, loud, prompt="something else entirely")
    collector.of_trace(loud_id, *ALL)
    assert not [span for span in collector.wait_for(bool, "any span") if span.trace_id == quiet_id]


@pytest.mark.long
async def test_a_collector_that_is_away_stops_nobody(clusters: Clusters, tiny_spec: ClusterSpec) -> None:
    cluster = clusters.start(tiny_spec.with_settings(tracing__otlp_endpoint="http://127.0.0.1:1"))
    try:
        assert (await complete(cluster, parent(9)[1])).status_code == 200
    finally:
        cluster.stop()  # asserts a clean end in time
