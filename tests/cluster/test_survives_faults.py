"""Processes that are killed under load, KV that is spoiled on its way: every request ends, nothing leaks, the next one works."""

import asyncio
import os
import random
import signal
import time

import grpc
import psutil
import pytest
from cluster_clients import Ask, OpenAnswer, OpenStream, grpc_client
from cluster_harness import ClusterSpec, RunningCluster, until
from cluster_moves import Moves, blocks_of, kv_bytes
from cluster_reference import Reference
from cluster_shared import Clusters
from tokenizers import Tokenizer

from protocol.outcomes import Outcome

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

RESTART_TIMEOUT_S = 60.0
ENDED_TIMEOUT_S = 60.0
LOAD = 16
ANSWER_TOKENS = 150

Open = OpenAnswer | OpenStream


def load_asks(seed: int, count: int = LOAD) -> list[Ask]:
    """Prompts of 50 to 1,200 tokens, the short ones first: some are decoded while others wait for prefill."""
    drawn = random.Random(f"load {seed}")  # prompts that no other test has left in a prefix cache
    lengths = [50 + 1150 * index // count for index in range(count)]
    return [Ask.greedy([drawn.randrange(256) for _ in range(length)], ANSWER_TOKENS, ignore_eos=True) for length in lengths]


class Load:
    """Open requests: every other one over gRPC, the rest as event streams over HTTP."""

    def __init__(self, cluster: RunningCluster, seed: int, count: int = LOAD) -> None:
        self.asks = load_asks(seed, count)
        self.open: list[Open] = []
        self._cluster = cluster

    async def __aenter__(self) -> "Load":
        self._client = grpc_client(self._cluster)
        api = await self._client.__aenter__()
        self.open = [api.start(ask) if index % 2 else OpenStream(self._cluster, ask) for index, ask in enumerate(self.asks)]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for one in self.open:
            one.done.cancel()
        await asyncio.wait({one.done for one in self.open})
        await self._client.__aexit__(None, None, None)

    async def begun(self, count: int) -> None:
        """`count` clients have their first token."""
        await until(lambda: sum(one.has_begun.is_set() for one in self.open) >= count, f"{count} answers have begun")

    async def ended(self) -> None:
        """All of them, however; raises what an answer that breaks its promise raises."""
        await asyncio.wait_for(asyncio.gather(*(one.done for one in self.open)), ENDED_TIMEOUT_S)

    @property
    def failed(self) -> list[Open]:
        return [one for one in self.open if one.has_failed]

    def assert_right(self, reference: Reference) -> None:
        """What has finished is what an undisturbed cluster answers; what failed is a beginning of it."""
        expected = reference.answers(self.asks)
        tokenizer = Tokenizer.from_file(str(self._cluster.spec.model / "tokenizer.json"))
        for one, wanted in zip(self.open, expected, strict=True):
            if isinstance(one, OpenAnswer):
                tokens = one.answer.token_ids
                assert wanted.token_ids[: len(tokens)] == tokens
                assert one.has_failed or len(tokens) == ANSWER_TOKENS
            else:
                # What is left of a character at the end is not sent.
                text, got = (whole.rstrip("\ufffd") for whole in (tokenizer.decode(wanted.token_ids), one.answer.text))
                assert text.startswith(got)
                assert one.has_failed or got == text


async def assert_works_again(cluster: RunningCluster, reference: Reference, seed: int) -> None:
    """New requests are answered, and their KV moves between the processes that are there now."""
    drawn = random.Random(f"again {seed}")
    asks = [Ask.greedy([drawn.randrange(256) for _ in range(300)], 20, ignore_eos=True) for _ in range(4)]
    async with Moves(cluster) as moves, grpc_client(cluster) as api:
        answers = await api.ask_all(asks)
    reference.assert_same(asks, answers)
    assert moves.of("decode", "bytes") == moves.of("prefill", "bytes") == kv_bytes(cluster.spec.model, blocks_of(asks))
    assert moves.of("router", "outcomes") == len(asks)


async def new_outcomes(cluster: RunningCluster, before: dict[str, int]) -> dict[str, int]:
    after = await cluster.outcomes()
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


class TestKilledWorker:
    async def test_prefill(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        """The decode worker computes what it was promised: no client notices."""
        cluster = clusters.get(tiny_spec)
        await cluster.assert_idle()
        before = await cluster.outcomes()
        async with Load(cluster, seed=1) as load:
            await load.begun(4)
            killed = await cluster.kill_worker("prefill-0")
            assert not all(one.has_begun.is_set() for one in load.open), "it was killed too late"
            await load.ended()

        assert load.failed == []
        load.assert_right(tiny_reference)
        await cluster.assert_idle()
        assert await new_outcomes(cluster, before) == {Outcome.LENGTH: LOAD}
        found = await cluster.scrape()
        assert found["decode-0"].sum("serval_local_prefills_total", reason="prefill_failed") > 0
        await until(lambda: cluster.all_joined(without=killed.incarnation), "it is back", RESTART_TIMEOUT_S)
        await assert_works_again(cluster, tiny_reference, seed=2)

    @pytest.mark.long
    async def test_the_only_decode(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        """Nobody can go on until it is back: then the answers do, from the tokens that the clients have."""
        cluster = clusters.get(tiny_spec)
        await cluster.assert_idle()
        before = await cluster.outcomes()
        async with Load(cluster, seed=3) as load:
            await load.begun(4)
            killed = await cluster.kill_worker("decode-0")
            await load.ended()

        load.assert_right(tiny_reference)
        assert load.failed == []
        await cluster.assert_idle()
        assert await new_outcomes(cluster, before) == {Outcome.LENGTH: LOAD}
        await until(lambda: cluster.all_joined(without=killed.incarnation), "it is back", RESTART_TIMEOUT_S)
        await assert_works_again(cluster, tiny_reference, seed=4)

    async def test_one_of_two_decodes(
        self, clusters: Clusters, two_decode_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """The other goes on from the tokens that the clients have: no repeat, no gap."""
        cluster = clusters.get(two_decode_spec)
        await cluster.assert_idle()
        before = await cluster.outcomes()
        async with Load(cluster, seed=5) as load:
            await load.begun(6)
            killed = await cluster.kill_worker("decode-1")
            await load.ended()

        assert load.failed == []
        load.assert_right(tiny_reference)
        await cluster.assert_idle()
        assert await new_outcomes(cluster, before) == {Outcome.LENGTH: LOAD}
        await until(lambda: cluster.all_joined(without=killed.incarnation), "it is back", RESTART_TIMEOUT_S)
        await assert_works_again(cluster, tiny_reference, seed=6)

    @pytest.mark.long
    async def test_one_of_two_prefills(
        self, clusters: Clusters, two_prefill_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        cluster = clusters.get(two_prefill_spec)
        await cluster.assert_idle()
        async with Load(cluster, seed=7) as load:
            await load.begun(4)
            killed = await cluster.kill_worker("prefill-0")
            await load.ended()

        assert load.failed == []
        load.assert_right(tiny_reference)
        await cluster.assert_idle()
        await until(lambda: cluster.all_joined(without=killed.incarnation), "it is back", RESTART_TIMEOUT_S)
        await assert_works_again(cluster, tiny_reference, seed=8)


class TestStalledWorker:
    async def test_its_landing_slot_comes_back(
        self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """A prefill worker that stands still cannot say that it writes no more: its slot is set apart until it can."""
        cluster = clusters.get(tiny_spec)
        await cluster.assert_idle()
        before = await cluster.outcomes()
        (prefill,) = await cluster.workers("prefill")
        ask = Ask.greedy([*load_asks(seed=14)[-1].prompt] * 5, 10)
        async with grpc_client(cluster) as api:
            answer = api.start(ask)
            await until(lambda: _landing(cluster, "leased"), "the prompt has its landing slot")
            os.kill(prefill.pid, signal.SIGSTOP)
            try:
                answer.cancel()
                await until(lambda: _landing(cluster, "quarantined"), "the slot is set apart")
            finally:
                os.kill(prefill.pid, signal.SIGCONT)

        await until(cluster.all_joined, "the router hears of it again")
        await cluster.assert_idle()
        assert await new_outcomes(cluster, before) == {Outcome.CANCELLED: 1}
        assert await cluster.workers("prefill") == [prefill], "it is the same process"
        await assert_works_again(cluster, tiny_reference, seed=15)

    @pytest.mark.long
    async def test_for_good_it_is_replaced(
        self, clusters: Clusters, two_decode_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """Nobody wakes it: its answers go on elsewhere, and the launcher starts another in its place."""
        cluster = clusters.start(two_decode_spec.with_settings(cluster__silence_timeout_s=4))
        try:
            async with Load(cluster, seed=16) as load:
                await load.begun(4)
                (stopped,) = [worker for worker in await cluster.workers() if worker.name == "decode-1"]
                os.kill(stopped.pid, signal.SIGSTOP)
                await load.ended()
            assert load.failed == []
            load.assert_right(tiny_reference)
            await until(lambda: cluster.all_joined(without=stopped.incarnation), "another took its place", RESTART_TIMEOUT_S)
            await assert_works_again(cluster, tiny_reference, seed=17)
        finally:
            await asyncio.to_thread(cluster.stop)


class TestKilledRouter:
    @pytest.mark.long
    async def test_under_load(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        """Its clients' connections break. The workers give up its requests, and find it again when it is back."""
        cluster = clusters.get(tiny_spec)
        await cluster.assert_idle()
        workers = await cluster.workers()
        async with Load(cluster, seed=9) as load:
            await load.begun(4)
            os.kill(cluster.router_pid(), signal.SIGKILL)
            await load.ended()

        load.assert_right(tiny_reference)
        assert load.failed
        for one in load.failed:
            if isinstance(one, OpenAnswer):
                assert one.answer.error is grpc.StatusCode.UNAVAILABLE
            else:
                assert one.answer.ended == "cut"
        await until(cluster.all_joined, "the router is back, and the workers with it", RESTART_TIMEOUT_S)
        assert await cluster.workers() == workers, "the workers went on: the same processes, the same incarnations"
        await cluster.assert_idle()
        await assert_works_again(cluster, tiny_reference, seed=10)


class TestSpoiledTransfer:
    async def test_is_caught_and_computed_again(
        self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """One bit of every other write is flipped as it lands."""
        cluster = clusters.start(tiny_spec.with_settings(transfer__corrupt_one_in=2))
        asks = [Ask.greedy(ask.prompt, 20, ignore_eos=True) for ask in load_asks(seed=11, count=24)]
        try:
            async with Moves(cluster) as moves, grpc_client(cluster) as api:
                answers = await api.ask_all(asks)
            tiny_reference.assert_same(asks, answers)
            local = (await cluster.scrape())["decode-0"].by_label("serval_local_prefills_total", "reason")
            avoided = {"pair_avoided", "no_prefill_worker"}  # by the decode worker, and by the router that has heard of it
            assert local.keys() <= {"prefill_failed", *avoided}, "who comes when two have failed is not risked"
            assert 0 < local["prefill_failed"] <= moves.of("decode", "mismatches")
            assert 0 < moves.of("decode", "bytes") < kv_bytes(tiny_spec.model, blocks_of(asks))
            assert moves.of("router", "outcomes") == len(asks)
        finally:
            cluster.stop()


class TestStop:
    """These end a cluster that the tests before have used."""

    async def test_drains_under_load(
        self, clusters: Clusters, two_prefill_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """SIGTERM: what is open finishes, what is new is refused, and the launcher ends well."""
        cluster = clusters.get(two_prefill_spec)
        await cluster.assert_idle()
        async with Load(cluster, seed=12, count=8) as load:
            await load.begun(2)
            cluster.ask_to_stop(signal.SIGTERM)
            late = await _refused(cluster)
            await load.ended()

        assert load.failed == []
        load.assert_right(tiny_reference)
        assert late is grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(cluster.assert_ended, 30)
        clusters.forget(cluster)

    async def test_nothing_outlives_a_killed_launcher(self, clusters: Clusters, two_decode_spec: ClusterSpec) -> None:
        cluster = clusters.get(two_decode_spec)
        async with Load(cluster, seed=13, count=8) as load:
            await load.begun(2)
            cluster.note_pids()
            assert len(cluster.known_pids) >= 4
            cluster.kill()
            await load.ended()
        clusters.forget(cluster)
        await until(lambda: not any(map(psutil.pid_exists, cluster.known_pids)), "every process is gone", 10)


async def _landing(cluster: RunningCluster, state: str) -> float:
    """Landing blocks in a state. Asks the decode worker alone: the others may stand still."""
    (decode,) = await cluster.workers("decode")
    return (await cluster.scrape_worker(decode)).sum("serval_kv_landing_blocks", state=state)


async def _refused(cluster: RunningCluster) -> grpc.StatusCode:
    """How a request ends that comes while the cluster drains; one may slip in before the signal is heard."""
    deadline = time.monotonic() + 10
    async with grpc_client(cluster) as api:
        while time.monotonic() < deadline:
            try:
                await api.ask(Ask.greedy(b"too late?", 1))
            except grpc.aio.AioRpcError as error:
                return error.code()
    raise AssertionError("requests are still taken 10 s after SIGTERM")
