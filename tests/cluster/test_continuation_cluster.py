"""`kill -9` of a decode worker that answers many different calls: no client has anything else at the end than undisturbed."""

import asyncio

import httpx
import pytest
from cluster_harness import ClusterSpec, RunningCluster, client, until
from cluster_shared import Clusters

from tests.integration.continuation_kinds import KINDS
from tests.integration.continuation_views import Json, ask_http

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(180)]

VICTIM = "decode-1"
LONGER = {"max_tokens": 120}
RESTART_TIMEOUT_S = 60.0
ALL_AT_ONCE = [(path, body | LONGER, stream) for path, body in KINDS.values() for stream in (True, False)]


async def ask_all(http: httpx.AsyncClient, model: str) -> list[Json]:
    asking = [ask_http(http, path, body | {"model": model}, stream) for path, body, stream in ALL_AT_ONCE]
    return list(await asyncio.gather(*asking))


async def retries(cluster: RunningCluster) -> float:
    return (await cluster.scrape())["router"].sum("serval_retries_total", reason="worker_lost")


async def test_whatever_was_asked_for_goes_on(clusters: Clusters, two_decode_spec: ClusterSpec) -> None:
    cluster = clusters.get(two_decode_spec)
    await cluster.assert_idle()
    (victim,) = [worker for worker in await cluster.workers("decode") if worker.name == VICTIM]
    went_on = await retries(cluster)

    async def is_answering() -> bool:
        samples = await cluster.scrape_worker(victim)
        return samples.sum("serval_num_requests_running") >= 6 and samples.sum("serval_engine_steps_total") > steps + 10

    async with client() as http:
        http.base_url = httpx.URL(cluster.url)
        undisturbed = await ask_all(http, cluster.model)
        steps = (await cluster.scrape_worker(victim)).sum("serval_engine_steps_total")
        asking = asyncio.create_task(ask_all(http, cluster.model))
        await until(is_answering, f"{VICTIM} answers many")
        killed = await cluster.kill_worker(VICTIM)
        answers = await asking

    assert await retries(cluster) - went_on >= 3, "it was killed too late"
    for (path, body, stream), answer, wanted in zip(ALL_AT_ONCE, answers, undisturbed, strict=True):
        assert answer == wanted, f"{path} {body}, stream={stream}"
    await until(lambda: cluster.all_joined(without=killed.incarnation), "it is back", RESTART_TIMEOUT_S)
    await cluster.assert_idle()
