"""Prefill and decode workers that are two processes each answer as one process does, over NIXL; and are replaced as one."""

import asyncio
import dataclasses
import random

import psutil
import pytest
from cluster_clients import Ask, grpc_client
from cluster_harness import ClusterSpec, RunningCluster, until
from cluster_moves import Moves, blocks_of, kv_bytes
from cluster_reference import Reference
from cluster_shared import Clusters

from protocol.sampling import SamplingParams
from tests.agreeing_longcat import write_agreeing_longcat

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LENGTHS = (1, 17, 100, 333)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)


@pytest.fixture(scope="module")
def split_spec(tiny_spec: ClusterSpec, tmp_path_factory: pytest.TempPathFactory) -> ClusterSpec:
    """1P1D, each split over two processes; the MTP head drafts."""
    model = write_agreeing_longcat(tmp_path_factory.mktemp("models") / "agreeing-longcat")
    return dataclasses.replace(tiny_spec, model=model).with_settings(engine__speculation="mtp", engine__tensor_parallel_size=2)


@pytest.fixture(scope="module")
def reference(split_spec: ClusterSpec) -> Reference:
    return Reference(split_spec.model, speculation="off")


def asks_of(lengths: tuple[int, ...], params: SamplingParams, seed: int) -> list[Ask]:
    drawn = random.Random(f"split {seed}")
    return [Ask(tuple(drawn.randrange(4, 260) for _ in range(length)), params) for length in lengths]


async def followers_of(cluster: RunningCluster, name: str) -> list[psutil.Process]:
    (worker,) = [worker for worker in await cluster.workers() if worker.name == name]
    children = psutil.Process(worker.pid).children()
    return [child for child in children if "engine.split.follower" in child.cmdline()]


async def test_same_answer_as_one_process(clusters: Clusters, split_spec: ClusterSpec, reference: Reference) -> None:
    cluster, asks = clusters.get(split_spec), asks_of(LENGTHS, GREEDY, seed=1)
    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    assert reference.assert_same(asks, answers) <= 1
    moved = kv_bytes(split_spec.model, blocks_of(asks), with_draft_head=True)
    assert moves.of("decode", "bytes") == moves.of("prefill", "bytes") == moved
    assert moves.of("decode", "prefilled") == moves.of("decode", "mismatches") == 0
    assert len(await followers_of(cluster, "prefill-0")) == len(await followers_of(cluster, "decode-0")) == 1


@pytest.mark.long
async def test_a_worker_whose_follower_is_killed_is_replaced(
    clusters: Clusters, split_spec: ClusterSpec, reference: Reference
) -> None:
    """The client notices at most that it has to ask again."""
    cluster, (ask,) = clusters.get(split_spec), asks_of((40,), LONG, seed=2)
    (worker,) = await cluster.workers("decode")
    async with grpc_client(cluster) as client:
        running = client.start(ask)
        await until(running.has_begun.is_set, "the answer has begun")
        (follower,) = await followers_of(cluster, "decode-0")
        cluster.note_pids()
        follower.kill()
        await asyncio.wait({running.done}, timeout=120)
        assert running.done.done()
        await until(lambda: cluster.all_joined(without=worker.incarnation), "the worker has been replaced", 120)
        answer = await client.ask(ask) if running.has_failed else running.answer
    assert reference.assert_same([ask], [answer]) <= 1
    assert len(await followers_of(cluster, "decode-0")) == 1
    assert not psutil.pid_exists(worker.pid)
    await cluster.assert_idle()
