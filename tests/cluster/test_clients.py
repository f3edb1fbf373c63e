"""What clients see: the unmodified `openai` client, a raw event stream, gRPC; and what the metrics say of them."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import openai
import pytest
from cluster_clients import Ask, SseAnswer, grpc_client, read_sse
from cluster_harness import ClusterSpec, RunningCluster, client, until
from cluster_moves import Moves, blocks_of, kv_bytes
from cluster_reference import Reference
from cluster_shared import Clusters
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protocol import serval_pb2, serval_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

FREED_TIMEOUT_S = 2.0
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
async def tiny(clusters: Clusters, tiny_spec: ClusterSpec) -> AsyncIterator[RunningCluster]:
    """One prefill and one decode worker, idle before and after."""
    cluster = clusters.get(tiny_spec)
    await cluster.assert_idle()
    yield cluster
    await cluster.assert_idle()


def tokens(count: int, seed: int) -> list[int]:
    drawn = random.Random(f"clients {seed}")
    return [drawn.randrange(256) for _ in range(count)]


def body(cluster: RunningCluster, prompt: Any, max_tokens: int, **more: Any) -> dict[str, Any]:
    """A greedy completion that does not end before `max_tokens`."""
    fixed = {"model": cluster.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return {**fixed, **more}


class TestOpenAiClient:
    async def test_a_real_model_answers_sensibly(self, clusters: Clusters, embedded_spec: ClusterSpec) -> None:
        cluster = clusters.get(embedded_spec)
        async with Moves(cluster) as moves:
            with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as api:
                (model,) = api.models.list().data
                answer = await asyncio.to_thread(
                    api.chat.completions.create, model=model.id, messages=QUESTION, temperature=0, max_tokens=32
                )

        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.total_tokens > answer.usage.prompt_tokens
        assert moves.of("decode", "bytes") > 0
        assert moves.of("router", "outcomes") == 1

    def test_streams(self, clusters: Clusters, embedded_spec: ClusterSpec) -> None:
        cluster = clusters.get(embedded_spec)
        with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as api:
            ask = {"model": cluster.model, "messages": QUESTION, "temperature": 0, "max_tokens": 32}
            whole = api.chat.completions.create(**ask).choices[0].message.content
            chunks = list(api.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))

        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == whole
        assert len([text for text in texts if text]) > 3, "the answer came in one piece"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens > 0

    async def test_async_and_many_at_once(self, tiny: RunningCluster) -> None:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as api, Moves(tiny) as moves:

            async def one(seed: int) -> tuple[str, str]:
                ask = body(tiny, tokens(50 + 20 * seed, seed=100 + seed), 20)
                ask["extra_body"] = {"ignore_eos": ask.pop("ignore_eos")}
                whole = await api.completions.create(**ask)
                pieces = [piece.choices[0].text async for piece in await api.completions.create(**ask, stream=True)]
                return whole.choices[0].text, "".join(pieces)

            answers = await asyncio.gather(*(one(seed) for seed in range(8)))

        assert all(whole == streamed for whole, streamed in answers)
        assert len({whole for whole, _ in answers}) == len(answers), "different prompts have different answers"
        assert moves.of("router", "outcomes") == 2 * len(answers)

    async def test_errors_are_the_clients_own(self, tiny: RunningCluster) -> None:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as api:
            with pytest.raises(openai.BadRequestError) as refused:
                await api.completions.create(model=tiny.model, prompt="x", max_tokens=-1)
        assert refused.value.param == "max_tokens"


class TestEventStream:
    async def test_as_curl_sees_it(self, tiny: RunningCluster) -> None:
        answer = SseAnswer()
        ask = body(tiny, "Once upon a time", 24, stream=True)
        async with client() as http, http.stream("POST", f"{tiny.url}/v1/completions", json=ask) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-serval-decode-worker"] == "decode-0"
            assert response.headers["x-serval-prefill-worker"] == "prefill-0"
            seen = [(len(growing.events), growing.text) async for growing in read_sse(response, answer)]

        assert answer.ended == "done"
        assert len(seen) > 10, "an event per token, not one in the end"
        assert {event["object"] for event in answer.events} == {"text_completion"}
        assert [event["choices"][0]["finish_reason"] for event in answer.events][-1] == "length"
        async with client() as http:
            whole = await http.post(f"{tiny.url}/v1/completions", json=body(tiny, "Once upon a time", 24))
        assert whole.json()["choices"][0]["text"] == answer.text
        usage = whole.json()["usage"]
        figures = usage.pop("serval")
        assert figures["decode_worker"] == "decode-0" and figures["ttft_s"] > 0 and figures["cost_usd"] > 0
        assert usage == {
            "prompt_tokens": 16,
            "completion_tokens": 24,
            "total_tokens": 40,
            "prompt_tokens_details": {"cached_tokens": 0},  # one block, and the last token is always computed
        }

    async def test_health_and_readiness(self, tiny: RunningCluster) -> None:
        async with client() as http:
            for path in ("/health", "/ready", "/v1/models", f"/v1/models/{tiny.model}"):
                assert (await http.get(f"{tiny.url}{path}")).status_code == 200


class TestGrpc:
    async def test_every_kind_of_prompt(self, tiny: RunningCluster) -> None:
        sampling = serval_pb2.Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)
        prompts = {
            "text": serval_pb2.GenerateRequest(text="hello", sampling=sampling),
            "token_ids": serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=b"hello"), sampling=sampling),
            "chat": serval_pb2.GenerateRequest(
                chat=serval_pb2.Chat(messages=[serval_pb2.ChatMessage(role="user", content="hello")]), sampling=sampling
            ),
        }
        answers = {}
        async with grpc.aio.insecure_channel(tiny.grpc) as channel:
            stub: Any = serval_pb2_grpc.ServalStub(channel)
            for kind, request in prompts.items():
                messages = [message async for message in stub.Generate(request, timeout=60)]
                assert [message.HasField("finish") for message in messages] == [False] * (len(messages) - 1) + [True]
                assert messages[-1].finish.usage.completion_tokens == 8
                answers[kind] = [token_id for message in messages for token_id in message.token_ids]
            info = await stub.GetModelInfo(serval_pb2.GetModelInfoRequest(), timeout=60)

        assert answers["text"] == answers["token_ids"] != answers["chat"]
        assert (info.model, info.max_model_len, info.vocab_size) == (tiny.model, 8192, 260)

    async def test_every_process_has_health_and_reflection(self, tiny: RunningCluster) -> None:
        own = {"router": "serval.v1.Serval", "prefill": "serval.cluster.v1.PrefillService", "decode": ""}
        addresses = {worker.role: worker.address for worker in await tiny.workers()} | {"router": tiny.grpc}
        assert addresses.keys() == own.keys()
        for role, address in addresses.items():
            services = await asyncio.to_thread(_services, address)
            assert "grpc.health.v1.Health" in services
            assert not own[role] or own[role] in services
            async with grpc.aio.insecure_channel(address) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                for service in {"", own[role]}:
                    answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING, role


def _services(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        return list(ProtoReflectionDescriptorDatabase(channel).get_services())


class TestFirstToken:
    async def test_leaves_before_the_transfer_ends(
        self, clusters: Clusters, slow_transfer_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """With a transfer that takes long, the first token is at the client while the KV is still on its way."""
        cluster = clusters.get(slow_transfer_spec)
        ask = Ask.greedy(tokens(700, seed=200), 6, ignore_eos=True)
        async with Moves(cluster) as moves, grpc_client(cluster) as api:
            before = await cluster.total("serval_kv_transfer_bytes_total", "decode")
            answer = api.start(ask)
            await asyncio.wait_for(answer.has_begun.wait(), 30)
            found = await cluster.scrape()
            assert len(answer.answer.token_ids) == 1, "decoding cannot have begun"
            assert found["decode-0"].sum("serval_kv_transfer_bytes_total") == before
            assert found["decode-0"].sum("serval_kv_landing_blocks", state="leased") > 0
            await answer.done

        tiny_reference.assert_same([ask], [answer.answer])
        assert moves.of("decode", "bytes") == kv_bytes(cluster.spec.model, blocks_of([ask]))


class TestMetrics:
    async def test_each_request_is_counted_once_everywhere(self, tiny: RunningCluster) -> None:
        asks = [Ask.greedy(tokens(40 * (index + 1), seed=300 + index), 10 + index, ignore_eos=True) for index in range(5)]
        before = await tiny.scrape()
        async with Moves(tiny) as moves, grpc_client(tiny) as api:
            await api.ask_all(asks)
        after = await tiny.scrape()

        def grown(process: str, name: str) -> float:
            return after[process].sum(name) - before[process].sum(name)

        once_per_request = [
            "requests_total", "time_to_first_token_seconds_count", "e2e_request_latency_seconds_count",
            "request_time_per_output_token_seconds_count", "user_tokens_per_second_count", "request_queue_time_seconds_count",
            "request_prefill_time_seconds_count", "request_transfer_time_seconds_count", "request_decode_time_seconds_count",
            "request_prompt_tokens_count", "request_generation_tokens_count",
        ]  # fmt: skip
        assert {name: grown("router", f"serval_{name}") for name in once_per_request} == dict.fromkeys(once_per_request, 5)
        answer_tokens = sum(ask.params.max_tokens for ask in asks)
        assert grown("router", "serval_generation_tokens_total") == answer_tokens
        assert grown("router", "serval_inter_token_latency_seconds_count") == answer_tokens - 5
        assert grown("router", "serval_prompt_tokens_total") == sum(len(ask.prompt) for ask in asks)
        assert after["router"].by_label("serval_workers", "pool") == {"prefill": 1, "decode": 1}

        for process in ("prefill-0", "decode-0"):
            assert moves.of(process, "bytes") == kv_bytes(tiny.spec.model, blocks_of(asks))
            assert grown(process, "serval_kv_transfer_seconds_count") == 5
            assert grown(process, "serval_kv_transfer_exposed_seconds_count") == 5
            assert grown(process, "serval_engine_steps_total") > 0
            assert grown(process, "serval_kv_transfer_failures_total") == 0
            assert grown(process, "serval_kv_notifications_dropped_total") == 0
        assert grown("prefill-0", "serval_kv_transfer_writes_total") >= 5
        assert grown("prefill-0", "serval_kv_transfer_descriptors_total") >= grown(
            "prefill-0", "serval_kv_transfer_writes_total"
        )
        assert grown("prefill-0", "serval_kv_digest_seconds_total") > 0


class TestCancellation:
    """A client that goes away: both sides are free again at once."""

    async def _assert_freed(self, cluster: RunningCluster, since: dict[str, int], cancelled: int = 1) -> None:
        started = time.monotonic()
        await cluster.assert_idle(FREED_TIMEOUT_S)
        await until(lambda: self._has_counted(cluster, since, cancelled), "the outcome is counted", FREED_TIMEOUT_S)
        assert time.monotonic() - started < 2 * FREED_TIMEOUT_S

    @staticmethod
    async def _has_counted(cluster: RunningCluster, since: dict[str, int], cancelled: int) -> bool:
        outcomes = await cluster.outcomes()
        return {name: count - since.get(name, 0) for name, count in outcomes.items() if count != since.get(name, 0)} == {
            "cancelled": cancelled
        }

    async def test_of_a_stream_over_http(self, tiny: RunningCluster) -> None:
        since = await tiny.outcomes()
        ask = body(tiny, tokens(300, seed=400), 4000, stream=True)
        answer = SseAnswer()
        async with client() as http, http.stream("POST", f"{tiny.url}/v1/completions", json=ask) as response:
            async for growing in read_sse(response, answer):
                if len(growing.events) == 5:
                    break
        await self._assert_freed(tiny, since)

    async def test_of_a_whole_answer_over_http(self, tiny: RunningCluster) -> None:
        since = await tiny.outcomes()
        steps = await tiny.total("serval_engine_steps_total", "decode")
        async with client() as http:
            ask = body(tiny, tokens(300, seed=401), 4000)
            asking = asyncio.create_task(http.post(f"{tiny.url}/v1/completions", json=ask))
            await until(lambda: self._steps_beyond(tiny, steps + 5), "the answer is being decoded")
            asking.cancel()
            await asyncio.wait({asking})
        await self._assert_freed(tiny, since)

    async def test_over_grpc(self, tiny: RunningCluster) -> None:
        since = await tiny.outcomes()
        async with grpc_client(tiny) as api:
            answer = api.start(Ask.greedy(tokens(300, seed=402), 4000, ignore_eos=True))
            await asyncio.wait_for(answer.has_begun.wait(), 30)
            answer.cancel()
            await asyncio.wait({answer.done})
            await self._assert_freed(tiny, since)

    async def test_of_many_at_once(self, tiny: RunningCluster) -> None:
        since = await tiny.outcomes()
        async with grpc_client(tiny) as api:
            answers = [api.start(Ask.greedy(tokens(200, seed=410 + index), 4000, ignore_eos=True)) for index in range(16)]
            await asyncio.wait_for(asyncio.gather(*(answer.has_begun.wait() for answer in answers[:8])), 30)
            for answer in answers:
                answer.cancel()
            await asyncio.wait({answer.done for answer in answers})
            await self._assert_freed(tiny, since, cancelled=16)

    async def test_while_the_prompt_is_computed(self, tiny: RunningCluster) -> None:
        since = await tiny.outcomes()
        generated = await tiny.total("serval_generation_tokens_total", "router")
        async with grpc_client(tiny) as api:
            answer = api.start(Ask.greedy(tokens(7000, seed=403), 100))
            await until(lambda: self._is_prefilling(tiny), "the prompt is being computed")
            answer.cancel()
            await asyncio.wait({answer.done})
        await self._assert_freed(tiny, since)
        assert await tiny.total("serval_generation_tokens_total", "router") == generated, "it was cancelled too late"

    async def test_while_it_waits_for_a_landing_slot(self, tiny: RunningCluster, tiny_reference: Reference) -> None:
        """The landing zone has room for one of the two prompts; who stands in line leaves it without a trace."""
        since = await tiny.outcomes()
        asks = [Ask.greedy(tokens(7000, seed=404 + index), 5, ignore_eos=True) for index in range(2)]
        async with grpc_client(tiny) as api:
            first = api.start(asks[0])
            await until(lambda: self._is_prefilling(tiny), "the first prompt is being computed")
            second = api.start(asks[1])
            await until(lambda: self._waiting(tiny, 2), "both have been submitted")
            second.cancel()
            await until(lambda: self._has_counted(tiny, since, 1), "the second has ended", FREED_TIMEOUT_S)
            assert not first.done.done(), "the first should still be under way"
            await first.done
        tiny_reference.assert_same([asks[0]], [first.answer])

    @staticmethod
    async def _is_prefilling(cluster: RunningCluster) -> bool:
        return await cluster.total("serval_num_requests_running", "prefill") > 0

    @staticmethod
    async def _waiting(cluster: RunningCluster, count: int) -> bool:
        return await cluster.total("serval_num_requests_waiting", "router") == count

    @staticmethod
    async def _steps_beyond(cluster: RunningCluster, steps: float) -> bool:
        return await cluster.total("serval_engine_steps_total", "decode") > steps


async def test_a_client_that_hangs_up_while_it_sends(tiny: RunningCluster) -> None:
    """Half a body is no request."""
    since = await tiny.outcomes()
    host, port = httpx.URL(tiny.url).host, httpx.URL(tiny.url).port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await tiny.assert_idle(FREED_TIMEOUT_S)
    assert await tiny.outcomes() == since
