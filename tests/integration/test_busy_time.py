"""What a request took of both engines is told once: with its end, or in the reports of the worker that could not tell it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from pair_support import WAIT_S, Pair, params_of, random_prompt, running_pair

from engine.batch import Batch
from engine.tiny import write_tiny_llama
from prefill.jobs import Jobs
from protocol import cluster_pb2

CHUNKED = {"max_batch_tokens": 64, "max_sequences": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def pair(folder: Path) -> AsyncIterator[Pair]:
    async with running_pair(folder, decode={"local_prefill_max_tokens": 0}) as running:
        yield running


@pytest.fixture
async def chunked(folder: Path) -> AsyncIterator[Pair]:
    """Long prompts take several steps."""
    async with running_pair(folder, engine=CHUNKED, decode={"local_prefill_max_tokens": 0}) as running:
        yield running


@contextlib.contextmanager
def held_layers(jobs: Jobs) -> Iterator[tuple[asyncio.Event, threading.Event]]:
    """Once a prompt's first chunk has been computed: sets the first event, and waits for the second."""
    on_layer, loop, computing, go_on = jobs.engine_side.on_layer, asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow(layer: int, batch: Batch) -> None:
        on_layer(layer, batch)
        if batch.spans[0].start > 0 and not go_on.is_set():
            loop.call_soon_threadsafe(computing.set)
            assert go_on.wait(WAIT_S)

    engine = jobs._engine
    engine.on_layer, before = slow, engine.on_layer
    try:
        yield computing, go_on
    finally:
        go_on.set()
        engine.on_layer = before


async def test_busy_times_of_requests_add_up_to_the_engines(pair: Pair) -> None:
    asked = [
        pair.router.submit(random_prompt(20 + 60 * i, i), params_of(), prefill=["prefill-0", None][i % 2]) for i in range(6)
    ]
    ends = [await told.until_ended() for told in asked]
    for ended, local in zip(ends, [False, True] * 3, strict=True):
        assert ended.timings.prefilled_locally == local
        assert (ended.timings.prefill_busy_s > 0) is not local
        assert ended.timings.decode_busy_s > 0
    by_prefill = sum(ended.timings.prefill_busy_s for ended in ends)
    by_decode = sum(ended.timings.decode_busy_s for ended in ends)
    assert by_prefill == pytest.approx(pair.prefill_metrics.value("serval_engine_busy_seconds_total"))
    assert by_decode == pytest.approx(pair.decode_metrics.value("serval_engine_busy_seconds_total"))


async def test_a_prefill_worker_reports_whom_it_told_what_it_took(pair: Pair) -> None:
    """So that a router knows what a decode worker that dies has not passed on."""
    asked = [pair.router.submit(random_prompt(40 + i, i), params_of()) for i in range(3)]
    by_ends = sum([(await told.until_ended()).timings.prefill_busy_s for told in asked])
    load = await pair.router.until_reported("prefill-0", lambda load: len(load.told_busy) == 1 and not load.running)
    assert load.told_busy[0].peer == pair.router.peers["decode-0"].incarnation
    assert load.told_busy[0].busy_s == pytest.approx(by_ends) == pytest.approx(load.busy_s)
    assert (load.untold_busy_s, load.lost_busy_s) == (0.0, 0.0)


async def test_what_nobody_waits_for_any_more_is_reported_as_lost(chunked: Pair) -> None:
    """A call that is broken off, and an abort that is: whoever asked has gone."""
    pair, jobs = chunked, chunked.prefill._jobs
    assert jobs is not None
    with held_layers(jobs) as (computing, go_on):
        told = pair.router.submit(random_prompt(200), params_of())
        await asyncio.wait_for(computing.wait(), WAIT_S)
        (job,) = jobs._by_key.values()
        abort = cluster_pb2.AbortRequest(
            lease_id=job.lease_id,
            decode_incarnation=job.decode_incarnation,
            prefill_incarnation=pair.router.peers["prefill-0"].incarnation,
        )
        aborting = asyncio.create_task(jobs.abort(abort))
        await asyncio.sleep(0.05)
        aborting.cancel()
        await asyncio.wait([aborting])
        await pair.decode.stop(0)
        go_on.set()
        load = await pair.router.until_reported("prefill-0", lambda load: load.lost_busy_s > 0 and not load.running)
    assert load.lost_busy_s + sum(one.busy_s for one in load.told_busy) == pytest.approx(load.busy_s)
    assert load.untold_busy_s == 0.0
    assert told.ended is None or told.ended.timings.prefill_busy_s == 0.0


async def test_what_a_prefill_worker_says_after_the_answer_is_reported(folder: Path) -> None:
    slow = {"local_prefill_max_tokens": 0, "first_token_timeout_s": 0.3, "abort_timeout_s": 10.0}
    async with running_pair(folder, engine=CHUNKED, decode=slow) as pair:
        jobs = pair.prefill._jobs
        assert jobs is not None
        with held_layers(jobs) as (_, go_on):
            ended = await pair.router.submit(random_prompt(200), params_of(max_tokens=3)).until_ended()
            assert (ended.outcome, ended.timings.prefilled_locally, ended.timings.prefill_busy_s) == ("length", True, 0.0)
            go_on.set()
            prefill = pair.router.peers["prefill-0"].incarnation
            load = await pair.router.until_reported("decode-0", lambda load: prefill in told_by(load))
        of_prefill = await pair.router.until_reported("prefill-0", lambda load: load.busy_s > 0 and not load.running)
        assert told_by(load)[prefill] == pytest.approx(of_prefill.busy_s)
        assert told_by(load)[pair.router.peers["decode-0"].incarnation] == pytest.approx(load.busy_s), "and its own"


def told_by(load: cluster_pb2.LoadReport) -> dict[int, float]:
    return {one.peer: one.busy_s for one in load.told_busy}


async def test_what_a_cancelled_prompt_took_of_prefill_is_told(chunked: Pair) -> None:
    pair, jobs = chunked, chunked.prefill._jobs
    assert jobs is not None
    with held_layers(jobs) as (computing, go_on):
        told = pair.router.submit(random_prompt(200), params_of())
        await asyncio.wait_for(computing.wait(), WAIT_S)
        pair.router.cancel(told)
        go_on.set()
        ended = await told.until_ended()
        assert (ended.outcome, told.tokens) == ("cancelled", [])
        assert ended.timings.prefill_busy_s > 0
