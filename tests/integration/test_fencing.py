"""What a prefill worker may confirm and write, and how long a dead one is pumped: cases that no peer does on purpose."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from kvtransfer_support import ALL_LARGE, LARGE, DecodeHost, Remote, lease_of, pair
from pair_support import Pair, running_pair

from engine.tiny import write_tiny_llama
from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.errors import LeaseExpired, PeerGone
from protocol.sampling import SamplingParams

pytestmark = pytest.mark.cluster


def test_a_lease_is_opened_once() -> None:
    with pair() as (decode, prefill):
        peer = decode.introduction()[1]
        lease = decode.reserve("once", prefill.get_incarnation(), [1, 2])
        assert prefill.send("once", peer, lease, [1, 2]).error is None
        decode.wait(lease_of(lease).lease_id)
        assert decode.release(lease_of(lease).lease_id, quiesced=True) == "free"
        # The same call once more, delivered late: the slot may be another's by now.
        with pytest.raises(LeaseExpired):
            prefill.open("once", peer, lease, [1, 2])


def test_who_has_lost_its_name_but_lives_is_not_told_that_its_slot_is_free() -> None:
    large = {"layout": LARGE, "transports": "tcp"}
    with pair(large, large) as (decode, prefill):
        introduction = decode.introduction()
        lease = decode.reserve("stopped", prefill.get_incarnation(), ALL_LARGE)
        namesake = Remote(DecodeHost, **large)
        try:
            theirs = namesake.introduction()
            decode.pause()
            prefill.start_and_break("stopped", introduction[1], lease, ALL_LARGE)  # with writes under way
            prefill.introduce(*theirs)
            decode.resume()
            sent = prefill.wait("stopped")
            assert sent.error is not None and sent.writes > 0 and not sent.quiesced
            assert prefill.abort(introduction[1], lease_of(lease).lease_id) is False
            # Nor by a barrier on a connection that is made afterwards.
            prefill.introduce(*introduction)
            assert prefill.abort(introduction[1], lease_of(lease).lease_id) is False
            assert namesake.end() == 0
        finally:
            namesake.kill()


def test_what_nobody_can_confirm_is_left_alone_and_another_zone_takes_its_place() -> None:
    """The connection breaks with writes under way: the slot's memory is not used again, its capacity comes back."""
    large = {"layout": LARGE, "transports": "tcp"}
    with pair(large | {"renew_after_s": 0.5}, large) as (decode, prefill):
        introduction = decode.introduction()
        peer, usable = introduction[1], decode.free_blocks()
        lost = decode.reserve("lost", prefill.get_incarnation(), ALL_LARGE[:48])
        decode.pause()
        prefill.start_and_break("lost", peer, lost, ALL_LARGE[:48])
        decode.resume()
        sent = prefill.wait("lost")
        assert not sent.quiesced
        beside = decode.reserve("beside", prefill.get_incarnation(), [50])  # goes on in the old zone
        assert decode.release(lease_of(lost).lease_id, quiesced=False) == "quarantined"
        decode.wait_for_free(usable)
        renewed = decode.introduction()
        assert renewed[3] != introduction[3], "it lies elsewhere"
        assert decode.state(lease_of(lost).lease_id) == "quarantined", "its zone waits for who is still in it"

        after = decode.reserve("after", prefill.get_incarnation(), [60, 61])
        with pytest.raises(PeerGone, match="has not been introduced"):
            prefill.open("after", peer, after, [1, 2])
        prefill.introduce(*renewed)
        assert prefill.send("beside", peer, beside, [3]).error is None
        decode.wait(lease_of(beside).lease_id)
        assert decode.release(lease_of(beside).lease_id, quiesced=True) == "free"
        decode.wait_for_state(lease_of(lost).lease_id, "retired")
        assert prefill.send("after", peer, after, [1, 2]).error is None
        decode.wait(lease_of(after).lease_id)
        assert decode.pool_equals([50, 60, 61], [3, 1, 2], seed=1)
        assert decode.metric("serval_kv_landing_blocks", state="retired") == 0, "who idles shows no block that is not free"
        assert decode.release(lease_of(after).lease_id, quiesced=True) == "free"
        assert decode.free_blocks() == usable
        assert decode.metric("serval_kv_zones_renewed_total") == 1


def test_without_memory_for_another_zone_the_receiver_goes_on_and_asks_again_later() -> None:
    with pair({"renew_after_s": 0.4, "lease_s": 0.6}) as (decode, prefill):
        decode.refuse_zones()
        lost = lease_of(decode.reserve("lost", prefill.get_incarnation(), [1])).lease_id
        assert decode.release(lost, quiesced=False) == "quarantined"
        decode.wait_for_metric("serval_kv_transfer_failures_total", reason="receiver")
        late = lease_of(decode.reserve("late", prefill.get_incarnation(), [2])).lease_id
        with pytest.raises(LeaseExpired):
            decode.wait(late)
        assert decode.metric("serval_kv_transfer_failures_total", reason="receiver") <= 4, "once in renew_after_s"


def test_bytes_that_come_for_a_retired_zone_find_memory_that_nobody_reads() -> None:
    """A late writer, as in the measurement of decision 2: here it comes when the zone has been retired for long."""
    with pair({"renew_after_s": 0.1}) as (decode, prefill):
        _, peer, *_ = decode.introduction()
        lease = decode.reserve("late", prefill.get_incarnation(), [1, 2])
        decode.release(lease_of(lease).lease_id, quiesced=False)
        decode.wait_for_state(lease_of(lease).lease_id, "retired")
        address = lease_of(lease).landing_address
        zone_blocks = decode.introduction()[4]
        decode.fill_zone(0, zone_blocks, 7)
        sent = prefill.send("late", peer, lease, [1, 2])
        assert sent.writes > 0, "it could post: its keys are as good as ever"
        assert decode.wait_for_metric("serval_kv_notifications_dropped_total", reason="unknown_lease") > 0, "and it has arrived"
        assert decode.introduction()[3] != address
        assert decode.count_changed(0, zone_blocks, 7) == 0
        assert decode.pool_is_zero()


def test_time_in_which_nothing_was_pumped_does_not_count() -> None:
    with pair({"pump_s": 0.4}) as (decode, prefill):
        incarnation = prefill.get_incarnation()
        lease_id = lease_of(decode.reserve("gone", incarnation, [1])).lease_id
        prefill.kill()
        decode.peer_gone(incarnation)
        decode.busy(1.0)
        stood_still_s = 0.9
        assert decode.wait_for_state(lease_id, "free") >= stood_still_s + 0.25


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Pair]:
    async with running_pair(write_tiny_llama(tmp_path), decode={"local_prefill_max_tokens": 0}) as running:
        yield running


async def test_another_life_of_a_prefill_worker_confirms_nothing(workers: Pair) -> None:
    peer = workers.router.peers["prefill-0"]
    async with grpc.aio.insecure_channel(peer.address) as channel:
        stub = cluster_pb2_grpc.PrefillServiceStub(channel)

        async def quiesced(incarnation: int) -> bool:
            request = cluster_pb2.AbortRequest(lease_id=5, decode_incarnation=9, prefill_incarnation=incarnation)
            return bool((await stub.Abort(request, timeout=10)).quiesced)

        assert not await quiesced(peer.incarnation + 2), "the dead one's bytes may still be on their way"
        assert await quiesced(peer.incarnation)


async def test_a_prefill_worker_that_has_forgotten_a_decode_worker_is_told_again(workers: Pair) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)

    async def is_prefilled_elsewhere(prompt: list[int]) -> bool:
        ended = await workers.router.submit(prompt, params).until_ended()
        assert ended.outcome == "length"
        return not ended.timings.prefilled_locally

    assert await is_prefilled_elsewhere(list(range(1, 40)))
    sender = workers.prefill._sender
    assert sender is not None
    incarnation = workers.router.peers["decode-0"].incarnation
    forgotten = sender._inbox.submit(lambda: sender._remove_peer(incarnation, "another has its name"))
    await asyncio.wait_for(asyncio.wrap_future(forgotten), 5)
    assert not await is_prefilled_elsewhere(list(range(50, 90))), "computed here, and nobody notices"
    assert await is_prefilled_elsewhere(list(range(100, 140)))
