"""A whole cluster behind certificates and keys, as `serval certs dev` and `serval keys new` make them."""

import asyncio
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import openai
import pytest
from cluster_harness import ClusterSpec, RunningCluster
from cluster_moves import Moves
from cluster_shared import Clusters

from protocol import cluster_pb2, cluster_pb2_grpc, serval_pb2, serval_pb2_grpc

pytestmark = pytest.mark.cluster

PROMPT = [7 + number % 200 for number in range(300)]
TIMEOUT_S = 60.0


def serval(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "serving.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "front-ca.pem")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security")
    serval("certs", "dev", str(folder))
    return folder


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    return serval("keys", "new", "--name", "test", "--tenant", "tests", "--file", str(folder / "keys.yaml")).strip()


@pytest.fixture(scope="module")
def cluster(clusters: Clusters, tiny_spec: ClusterSpec, folder: Path, key: str) -> Iterator[RunningCluster]:
    def of(name: str) -> str:
        return f"certificate: '{folder}/{name}.pem', key: '{folder}/{name}.key'"

    tls = {"cluster__tls": f"{{{of('{role}')}, ca: '{folder}/cluster-ca.pem'}}", "router__tls": f"{{{of('front')}}}"}
    cluster = clusters.start(tiny_spec.with_settings(**tls, router__keys_file=folder / "keys.yaml"))
    yield cluster
    cluster.stop()


async def test_an_openai_client_gets_an_answer_and_its_kv_moved(cluster: RunningCluster, folder: Path, key: str) -> None:
    trust = httpx.AsyncClient(verify=trusting(folder), trust_env=False)
    async with (
        Moves(cluster) as moves,
        openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=key, http_client=trust) as client,
    ):
        answer = await client.completions.create(model=cluster.model, prompt=PROMPT, max_tokens=6, temperature=0)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        stub_answer = await over_grpc(cluster, folder, key)
        assert stub_answer == answer.choices[0].text
    assert moves.of("decode", "bytes") > 0
    assert moves.of("decode", "prefilled") == 0
    found = await cluster.scrape()
    assert found["prefill-0"].sum("serval_tls_handshakes_total", surface="prefill") == 1
    assert found["router"].sum("serval_tls_handshakes_total", surface="link") == 2
    assert sum(samples.sum("serval_tls_refusals_total") for samples in found.values()) == 0


async def over_grpc(cluster: RunningCluster, folder: Path, key: str) -> str:
    trust = grpc.ssl_channel_credentials((folder / "front-ca.pem").read_bytes())
    credentials = grpc.composite_channel_credentials(trust, grpc.access_token_call_credentials(key))
    async with grpc.aio.secure_channel(cluster.grpc, credentials) as channel:
        stub: Any = serval_pb2_grpc.ServalStub(channel)
        sampling = serval_pb2.Sampling(max_tokens=6, temperature=0)
        request = serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=PROMPT), sampling=sampling)
        return "".join([message.text async for message in stub.Generate(request, timeout=TIMEOUT_S)])


async def test_nobody_without_a_key_or_certificate_gets_anywhere(cluster: RunningCluster, folder: Path) -> None:
    with pytest.raises(openai.AuthenticationError):
        trust = httpx.AsyncClient(verify=trusting(folder), trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{cluster.url}/v1", api_key="sk-wrong", http_client=trust, max_retries=0
        ) as client:
            await client.completions.create(model=cluster.model, prompt=PROMPT)
    before = await cluster.total("serval_tls_refusals_total", "router", surface="http")
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(cluster.url.replace("https:", "http:") + "/health", timeout=TIMEOUT_S)
    assert await cluster.total("serval_tls_refusals_total", "router", surface="http") == before + 1
    workers = {worker.role: worker.address for worker in await cluster.workers()}
    for address in workers.values():
        # Whoever reaches a worker would have it write KV where they say: this is the door in front of that.
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = cluster_pb2_grpc.PrefillServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Introduce(cluster_pb2.IntroduceRequest(), timeout=TIMEOUT_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_serval_chat_and_bench_take_the_authority_and_the_key(cluster: RunningCluster, folder: Path, key: str) -> None:
    environment = {"SERVAL_CA": str(folder / "front-ca.pem"), "SERVAL_API_KEY": key}
    said = await asyncio.to_thread(serval, "chat", "--url", cluster.url, "--max-tokens", "4", "hello", **environment)
    assert said.strip(), "no answer came"
    bench = ["bench", "--url", cluster.url, "--requests", "2", "--warmup", "0", "--isl", "20", "--osl", "4"]
    assert "2 of 2 requests" in await asyncio.to_thread(serval, *bench, **environment)


async def test_a_whole_new_set_takes_the_old_ones_place(cluster: RunningCluster, folder: Path, key: str) -> None:
    old = trusting(folder)
    dialled = await cluster.total("serval_tls_handshakes_total", "prefill")
    await asyncio.to_thread(serval, "certs", "dev", str(folder))
    async with httpx.AsyncClient(verify=old, trust_env=False) as http:
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await http.get(f"{cluster.url}/health", timeout=TIMEOUT_S)
    assert await over_grpc(cluster, folder, key)
    assert await cluster.total("serval_tls_handshakes_total", "prefill") == dialled + 1, "decode has shown its new certificate"
    assert await cluster.total("serval_local_prefills_total", "decode") == 0
    async with httpx.AsyncClient(verify=trusting(folder), trust_env=False) as http:
        assert (await http.get(f"{cluster.url}/health", timeout=TIMEOUT_S)).is_success


async def test_the_log_holds_no_secret(cluster: RunningCluster, folder: Path, key: str) -> None:
    await cluster.assert_idle()
    text = cluster.log.read_text(errors="replace")
    assert key not in text
    assert "PRIVATE KEY" not in text
    assert not re.search(r"\b7, 8, 9\b", text), "a prompt"
