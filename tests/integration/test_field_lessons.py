"""What users of other disaggregated systems have hit (docs/reliability.md lists it), on a real pair: none of it happens here."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_support import WAIT_S, Pair, running_pair

from decode.remote_prefill import RemotePrefill
from engine.batch import Batch
from engine.tiny import write_tiny_llama
from kvtransfer.transfer import Transfer
from prefill.jobs import Jobs
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, TransferFailed
from protocol.sampling import SamplingParams

SHORT = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
ELSEWHERE = {"local_prefill_max_tokens": 0}
SOON_S = 5.0
"""On a machine that does much else; far below every lease and deadline of these tests that is not named in them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def asked_of_prefill(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that a prefill worker was asked for."""
    accept, asked = Jobs._accept, []

    def noted(self: Jobs, request: cluster_pb2.PrefillRequest) -> Any:
        asked.append(request.request_id)
        return accept(self, request)

    monkeypatch.setattr(Jobs, "_accept", noted)
    return asked


def prompt(seed: int, length: int = 40) -> list[int]:
    return [(31 * seed + 7 * step + step * step) % 256 for step in range(length)]


def held(pair: Pair) -> tuple[int, int]:
    """KV blocks at prefill, and at decode: now, where the metrics say what they were at the last step."""
    jobs, parts = pair.prefill._jobs, pair.decode._parts
    assert jobs is not None and parts is not None
    return jobs._engine.kv_cache.num_held, parts.engine.kv_cache.num_held


async def until_idle(pair: Pair, timeout_s: float = SOON_S) -> None:
    """Both workers have everything back."""
    async with asyncio.timeout(timeout_s):
        while any(held(pair)) or pair.decode_metrics.value("serval_kv_landing_blocks", state="leased"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class StandingEngine:
    """A prefill worker whose engine stands in the middle of a prompt until `go_on` is set."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        jobs = pair.prefill._jobs
        assert jobs is not None
        self.stands, self.go_on = asyncio.Event(), threading.Event()
        on_layer, loop = jobs.engine_side.on_layer, asyncio.get_running_loop()

        def standing(layer: int, batch: Batch) -> None:
            on_layer(layer, batch)
            loop.call_soon_threadsafe(self.stands.set)
            assert self.go_on.wait(WAIT_S)

        monkeypatch.setattr(jobs._engine, "on_layer", standing)


@pytest.fixture
async def pair(folder: Path) -> AsyncIterator[Pair]:
    async with running_pair(folder, decode=ELSEWHERE) as running:
        yield running


@pytest.fixture
def answer(folder: Path) -> Iterator[Any]:
    """What the decode worker answers by itself."""

    async def alone(pair: Pair, seed: int, params: SamplingParams = SHORT) -> list[int]:
        told = pair.router.submit(prompt(seed), params, prefill=None)
        assert (await told.until_ended()).outcome == "length"
        return told.tokens

    yield alone


async def test_a_token_that_prefill_has_drawn_is_not_computed_again(pair: Pair) -> None:
    told = pair.router.submit(prompt(1), SHORT)
    await told.until_ended()
    assert pair.decode_metrics.value("serval_engine_steps_total") == SHORT.max_tokens - 1 == len(told.tokens) - 1


async def test_one_failed_transfer_does_not_shut_out_a_healthy_worker(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = pair.prefill._sender

    def broken(*_: Any) -> None:
        raise TransferFailed("once")

    with monkeypatch.context() as patched:
        patched.setattr(sender, "open", broken)
        first = await pair.router.submit(prompt(1), SHORT).until_ended()
    second = await pair.router.submit(prompt(2), SHORT).until_ended()
    assert [ended.timings.prefilled_locally for ended in (first, second)] == [True, False]
    assert pair.decode_metrics.value("serval_pairs_avoided") == 0
    assert pair.decode_metrics.value("serval_local_prefills_total", reason="prefill_failed") == 1


async def test_a_transfer_that_stands_still_ends_and_the_answer_goes_on(
    folder: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prefill worker holds back the last layers, and says nothing of it."""
    async with running_pair(folder, decode={**ELSEWHERE, "transfer_timeout_s": 0.5}) as pair:
        sender = pair.prefill._sender
        assert sender is not None
        open_, transfers = sender.open, []

        def holding_back(*args: Any) -> Transfer:
            transfers.append(open_(*args))
            transfers[-1].limit(1)
            return transfers[-1]

        monkeypatch.setattr(sender, "open", holding_back)
        monkeypatch.setattr(Transfer, "lift_limit", lambda self: None)
        told = pair.router.submit(prompt(1), SHORT)
        ended = await told.until_ended()
        assert (ended.outcome, ended.timings.prefilled_locally, len(transfers)) == ("length", True, 1)
        assert pair.decode_metrics.value("serval_kv_transfer_failures_total", reason="transfer_failed") == 1
        await until_idle(pair)
        assert told.tokens == await answer(pair, 1)


async def test_a_prefill_worker_that_says_nothing_holds_up_nobody_for_ever(
    folder: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**ELSEWHERE, "first_token_timeout_s": 0.5, "abort_timeout_s": 0.5}
    async with running_pair(folder, decode=settings) as pair:
        engine = StandingEngine(pair, monkeypatch)
        told = pair.router.submit(prompt(1), SHORT)
        ended = await told.until_ended()
        assert (ended.outcome, ended.timings.prefilled_locally) == ("length", True)
        assert not engine.go_on.is_set()
        engine.go_on.set()
        await until_idle(pair)
        assert told.tokens == await answer(pair, 1)


async def test_what_decode_refuses_prefill_never_hears_of(folder: Path, asked_of_prefill: list[str]) -> None:
    """Too long, no room in the line, given up in the line."""
    small = {"kv_memory_bytes": 1 << 19}
    async with running_pair(folder, engine=small, decode={**ELSEWHERE, "max_waiting": 1}) as pair:
        most = int(pair.decode_metrics.value("serval_kv_blocks") or 0) * 16
        too_long = await pair.router.submit(prompt(1, most + 1), SHORT).until_ended()
        assert too_long.outcome == "invalid"
        running = pair.router.submit(prompt(2, most - 100), LONG)
        await running.until_tokens(2)
        waiting = pair.router.submit(prompt(3, most - 100), SHORT)
        refused = await pair.router.submit(prompt(4, most - 100), SHORT).until_ended()
        assert refused.outcome == "overloaded"
        pair.router.cancel(waiting)
        assert (await waiting.until_ended()).outcome == "cancelled"
        pair.router.cancel(running)
        assert (await running.until_ended()).outcome == "cancelled"
        assert asked_of_prefill == ["request-2"]
        await until_idle(pair)


async def test_what_decode_gives_up_after_the_call_prefill_gives_up_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One leg fails, and the other does not wait for its lease to end."""
    engine = StandingEngine(pair, monkeypatch)

    async def refusing(_: RemotePrefill) -> None:
        await engine.stands.wait()
        raise InvalidRequest("not here")

    monkeypatch.setattr(RemotePrefill, "first_token", refusing)
    ended = await pair.router.submit(prompt(1, 400), SHORT).until_ended()
    assert ended.outcome == "invalid"
    assert held(pair)[0] > 0, "it is in the middle of it"
    engine.go_on.set()
    await until_idle(pair)


async def test_a_request_put_back_for_want_of_blocks_answers_the_same_and_bothers_no_prefill_worker(
    folder: Path, asked_of_prefill: list[str], answer: Any
) -> None:
    """All fit when they are admitted; their answers do not."""
    params = replace(SHORT, max_tokens=80)
    async with running_pair(folder, engine={"kv_memory_bytes": 1 << 18}, decode=ELSEWHERE) as pair:
        asked = [pair.router.submit(prompt(seed), params) for seed in range(3)]
        for told in asked:
            assert (await told.until_ended()).outcome == "length"
        assert pair.decode_metrics.value("serval_num_preemptions_total") > 0, "there was room for all"
        assert asked_of_prefill == ["request-1", "request-2", "request-3"]
        await until_idle(pair)
        for seed, told in enumerate(asked):
            assert told.tokens == await answer(pair, seed, params)


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("no_prefill_worker", {"decode": ELSEWHERE}),
        ("short", {"decode": {"local_prefill_max_tokens": 64}}),
        ("landing_too_small", {"decode": ELSEWHERE, "transfer": {"landing_bytes": 40_000}}),
    ],
)
async def test_a_prompt_that_is_not_computed_elsewhere_says_why(folder: Path, reason: str, settings: Any) -> None:
    async with running_pair(folder, **settings) as pair:
        prefill = None if reason == "no_prefill_worker" else "prefill-0"
        ended = await pair.router.submit(prompt(1, 60), SHORT, prefill=prefill).until_ended()
        assert (ended.outcome, ended.timings.prefilled_locally) == ("length", True), "the router hears of it"
        assert pair.decode_metrics.value("serval_local_prefills_total", reason=reason) == 1
        assert pair.decode_metrics.value("serval_local_prefills_total") == 1


@pytest.mark.long
async def test_pools_that_are_split_differently_answer_as_one_process(folder: Path, answer: Any) -> None:
    """What travels is the whole KV, however many processes of a worker share its heads."""
    async with running_pair(folder, prefill_engine={"tensor_parallel_size": 2}, decode=ELSEWHERE) as pair:
        told = pair.router.submit(prompt(1), SHORT)
        ended = await told.until_ended()
        assert (ended.outcome, ended.timings.prefilled_locally) == ("length", False)
        assert pair.decode_metrics.value("serval_kv_digest_mismatches_total") == 0
        assert told.tokens == await answer(pair, 1)
