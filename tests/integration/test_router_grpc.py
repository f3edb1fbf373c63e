"""The gRPC front: the same answers, rules and outcomes as over HTTP, said in gRPC's words."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protocol import cluster_pb2, cluster_pb2_grpc, serval_pb2, serval_pb2_grpc
from router.call_trace import CallTrace
from tests.integration.router_support import (
    CONTEXT,
    MODEL,
    WAIT_S,
    Cluster,
    byte_level_tokenizer,
    cluster,
    positional_answer,
    write_model_folder,
)

TEXT = "the stop and the wörld 😀 go on "
TOKENIZER = byte_level_tokenizer()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(write_model_folder(tmp_path)) as one:
        yield one


def ask(max_tokens: int = 20, **more: Any) -> serval_pb2.GenerateRequest:
    return serval_pb2.GenerateRequest(text="x", sampling=serval_pb2.Sampling(max_tokens=max_tokens), **more)


def stub(running: Cluster) -> Any:
    return serval_pb2_grpc.ServalStub(running.channel)


@pytest.mark.parametrize("message", [b"\xff" * 50, b"\x12\x03\xed\xa0\x80"], ids=["no message", "half a character"])
@pytest.mark.parametrize("method", ["Generate", "Tokenize"])
async def test_bytes_that_are_no_message_are_the_caller_s_mistake(running: Cluster, method: str, message: bytes) -> None:
    path = f"/serval.v1.Serval/{method}"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        if method == "Generate":
            async for _ in running.channel.unary_stream(path)(message, timeout=WAIT_S):
                pass
        else:
            await running.channel.unary_unary(path)(message, timeout=WAIT_S)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "message" in (refused.value.details() or "")


async def test_an_answer_is_streamed_and_ends_with_its_finish(running: Cluster) -> None:
    async with running.worker("prefill"), running.worker(answer=positional_answer(TEXT)):
        call = stub(running).Generate(ask(), timeout=WAIT_S, metadata=[("x-request-id", "mine")])
        responses = [response async for response in call]
        headers = dict(await call.initial_metadata())
    tokens = TOKENIZER.encode(TEXT).ids
    received = [token for response in responses for token in response.token_ids]
    assert received == [tokens[position % len(tokens)] for position in range(1, 21)]
    assert "".join(response.text for response in responses) == TOKENIZER.decode(received)
    assert [response.HasField("finish") for response in responses] == [False] * (len(responses) - 1) + [True]
    finish = responses[-1].finish
    assert finish.reason == serval_pb2.FINISH_REASON_LENGTH
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens, finish.usage.cached_tokens) == (1, 20, 1)
    assert headers["x-request-id"] == "mine"
    assert (headers["x-serval-decode-worker"], headers["x-serval-prefill-worker"]) == ("decode-0", "prefill-0")
    assert running.outcomes() == {"length": 1}


async def test_stop_strings_and_logprobs(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        request = ask(stop=["wörld"])
        request.sampling.logprobs = 2
        responses = [response async for response in stub(running).Generate(request, timeout=WAIT_S)]
    assert "".join(response.text for response in responses) == " stop and the "
    assert responses[-1].finish.reason == serval_pb2.FINISH_REASON_STOP
    logprobs = [token for response in responses for token in response.logprobs]
    assert all(len(token.top) == 2 for token in logprobs)
    assert TOKENIZER.decode([token.chosen.token_id for token in logprobs]) == " stop and the "


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (serval_pb2.GenerateRequest(), "prompt"),
        (ask(model="other"), "model"),
        (ask(max_tokens=CONTEXT), "max_tokens"),
        (ask(stop=[""]), "stop"),
    ],
)
async def test_bad_input_is_invalid_argument_and_names_the_field(
    running: Cluster, request_: serval_pb2.GenerateRequest, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=field) as refused:
        async for _ in stub(running).Generate(request_, timeout=WAIT_S):
            pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert running.metrics.value("serval_rejections_total", reason="invalid") == 1
    assert running.outcomes() == {}


async def test_a_lost_worker_midway_is_unavailable_after_the_tokens_that_came(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as only:
        call = stub(running).Generate(ask(), timeout=WAIT_S)
        tokens: list[int] = []
        while len(tokens) < 3:
            tokens += (await call.read()).token_ids
        await only.kill()
        with pytest.raises(grpc.aio.AioRpcError, match="gone") as failed:
            await call.read()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert running.outcomes() == {"unavailable": 1}


async def test_cancelling_the_call_cancels_at_the_worker(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as only:
        for reads in (0, 1):
            call = stub(running).Generate(ask(), timeout=WAIT_S)
            if reads:
                await call.read()
            submit = await only.next_submit()
            call.cancel()
            assert await only.next_cancel() == submit.request
    await running.until(lambda: running.outcomes() == {"cancelled": 2})


async def test_the_client_s_deadline_is_the_request_s(running: Cluster) -> None:
    async with running.worker() as mute:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            async for _ in stub(running).Generate(ask(), timeout=0.3):
                pass
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < (await mute.next_submit()).timeout_s <= 0.3
        await mute.next_cancel()
    await running.until(lambda: running.outcomes() == {"deadline": 1})


async def test_a_client_that_reads_nothing_holds_up_nobody_and_its_call_ends(tmp_path: Path) -> None:
    long = 100_000
    async with (
        cluster(write_model_folder(tmp_path), client_stall_s=0.3, max_model_len=long) as running,
        running.worker(answer=positional_answer(TEXT), hold_after=1500, max_model_len=long, kv_blocks=10_000) as only,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{running.ports.grpc}", options=[("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
        ) as narrow,
    ):
        sampling = serval_pb2.Sampling(max_tokens=50_000, logprobs=5)
        call = serval_pb2_grpc.ServalStub(narrow).Generate(serval_pb2.GenerateRequest(text="x", sampling=sampling))
        submit = await only.next_submit()
        assert [response async for response in stub(running).Generate(ask(), timeout=WAIT_S)][-1].HasField("finish")
        assert await only.next_cancel() == submit.request, "nobody computes for it any more"
        await running.until(lambda: running.outcomes() == {"length": 1, "cancelled": 1})
        received = 0
        with pytest.raises(grpc.aio.AioRpcError, match="client_stall_s") as stalled:
            async for response in call:
                received += len(response.token_ids)
    assert stalled.value.code() is grpc.StatusCode.CANCELLED
    assert 0 < received < 1500


async def test_a_bug_before_the_answer_begins_leaves_nothing_running(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(CallTrace, "describe", broken)
    async with running.worker() as only:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub(running).Generate(ask(), timeout=WAIT_S).read()
        assert await only.next_cancel() == (await only.next_submit()).request
    assert running.outcomes() == {"cancelled": 1}


async def test_without_workers_unavailable(running: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stub(running).Generate(ask(), timeout=WAIT_S):
            pass
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_model_info_health_and_reflection(running: Cluster) -> None:
    info = await stub(running).GetModelInfo(serval_pb2.GetModelInfoRequest(), timeout=WAIT_S)
    assert (info.model, info.max_model_len, info.vocab_size) == (MODEL, CONTEXT, TOKENIZER.get_vocab_size())
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", "serval.v1.Serval"):
        status = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    listing: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=WAIT_S
    )
    names = {service.name for service in (await listing.read()).list_services_response.service}
    assert {"serval.v1.Serval", "grpc.health.v1.Health"} <= names
    assert "serval.cluster.v1.RouterLink" not in names
    await asyncio.wait_for(running.router.drain(), WAIT_S)
    status = await health.Check(health_pb2.HealthCheckRequest(service=""), timeout=WAIT_S)
    assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_stream_that_does_not_begin_with_hello_is_refused(running: Cluster) -> None:
    first = cluster_pb2.FromWorker(draining=cluster_pb2.Draining())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.link}") as channel:
        call: Any = cluster_pb2_grpc.RouterLinkStub(channel).Connect(iter([first]), timeout=WAIT_S)
        with pytest.raises(grpc.aio.AioRpcError, match="Hello") as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_workers_are_no_guests_of_the_clients_port(running: Cluster) -> None:
    call: Any = cluster_pb2_grpc.RouterLinkStub(running.channel).Connect(iter([cluster_pb2.FromWorker()]), timeout=WAIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
