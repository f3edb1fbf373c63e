"""KV moves between two processes over real NIXL, and what lands is verified."""

import random
from collections.abc import Iterator

import pytest
from kvtransfer_support import POOL_BLOCKS, SMALL, DecodeHost, PrefillHost, Remote

from protocol import cluster_pb2
from protocol.errors import LeaseExpired, TransferFailed

pytestmark = pytest.mark.cluster


def lease_id_of(lease: bytes) -> int:
    return cluster_pb2.WriteLease.FromString(lease).lease_id


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Remote, Remote]]:
    decode, prefill = Remote(DecodeHost), Remote(PrefillHost, min_write_bytes=16 * 1024)
    prefill.introduce(*decode.introduction())
    yield decode, prefill
    assert prefill.end() == 0
    assert decode.end() == 0


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("one block", [5], [9]),
        ("contiguous", list(range(32)), list(range(64, 96))),
        ("scattered", list(range(127, 60, -3)), list(range(0, 69, 3))),
        ("contiguous to scattered", list(range(10)), [7, 3, 90, 91, 92, 1, 0, 50, 40, 30]),
    ],
)
def test_a_prompt_lands_verified(pair: tuple[Remote, Remote], name: str, source: list[int], target: list[int]) -> None:
    decode, prefill = pair
    lease = decode.reserve(name, prefill.get_incarnation(), target)
    sent = prefill.send(name, decode.introduction()[1], lease, source)
    landed = decode.wait(lease_id_of(lease))
    assert sent.error is None and sent.quiesced
    assert sent.bytes == landed.bytes == len(source) * SMALL.layers * SMALL.block_bytes
    assert decode.pool_equals(target, source, seed=1)
    assert decode.release(lease_id_of(lease), quiesced=True) == "free"
    assert decode.free_blocks() == 256


def test_layers_leave_while_the_rest_is_computed(pair: tuple[Remote, Remote]) -> None:
    decode, prefill = pair
    blocks = list(range(16))
    lease = decode.reserve("layers", prefill.get_incarnation(), blocks)
    prefill.open("layers", decode.introduction()[1], lease, blocks)
    # First chunk: eight blocks of each layer, then the second chunk of two layers. Both are large enough to leave at once.
    prefill.layers_ready("layers", 0, 4, 8)
    prefill.layers_ready("layers", 0, 2, 16)
    assert not decode.is_done(lease_id_of(lease))
    prefill.layers_ready("layers", 2, 2, 16)
    prefill.compute_done("layers")
    sent = prefill.wait("layers")
    decode.wait(lease_id_of(lease))
    assert sent.error is None
    assert sent.writes >= 2
    assert decode.pool_equals(blocks, blocks, seed=1)
    decode.release(lease_id_of(lease), quiesced=True)


def test_small_layers_are_gathered(pair: tuple[Remote, Remote]) -> None:
    decode, prefill = pair
    lease = decode.reserve("small", prefill.get_incarnation(), [1])
    prefill.open("small", decode.introduction()[1], lease, [1])
    for layer in range(4):
        prefill.layers_ready("small", layer, 1, 1)
    prefill.compute_done("small")
    # Four layers of 4 KiB are one write of 16 KiB.
    assert prefill.wait("small").writes == 1
    decode.wait(lease_id_of(lease))
    decode.release(lease_id_of(lease), quiesced=True)


def test_many_transfers_at_once(pair: tuple[Remote, Remote]) -> None:
    decode, prefill = pair
    leases = {}
    for index in range(16):
        blocks = list(range(4 * index, 4 * index + 4))
        leases[f"many-{index}"] = (decode.reserve(f"many-{index}", prefill.get_incarnation(), blocks), blocks)
    for name, (lease, blocks) in leases.items():
        prefill.start(name, decode.introduction()[1], lease, blocks)
    for name, (lease, blocks) in leases.items():
        assert prefill.wait(name).error is None
        decode.wait(lease_id_of(lease))
        assert decode.pool_equals(blocks, blocks, seed=1)
        decode.release(lease_id_of(lease), quiesced=True)
    assert decode.free_blocks() == 256


def test_a_corrupted_byte_is_found_on_the_copy() -> None:
    decode, prefill = Remote(DecodeHost, corrupt_one_in=1), Remote(PrefillHost)
    prefill.introduce(*decode.introduction())
    lease = decode.reserve("bad", prefill.get_incarnation(), [1, 2])
    assert prefill.send("bad", decode.introduction()[1], lease, [1, 2]).error is None
    with pytest.raises(TransferFailed, match="digest"):
        decode.wait(lease_id_of(lease))
    assert decode.metric("serval_kv_digest_mismatches_total") == 1
    assert decode.release(lease_id_of(lease), quiesced=True) == "free"
    assert prefill.end() == decode.end() == 0


def test_an_aborted_lease_cannot_be_opened(pair: tuple[Remote, Remote]) -> None:
    decode, prefill = pair
    lease = decode.reserve("late", prefill.get_incarnation(), [1])
    assert prefill.abort(decode.introduction()[1], lease_id_of(lease)) is True
    with pytest.raises(LeaseExpired):
        prefill.open("late", decode.introduction()[1], lease, [1])
    assert decode.release(lease_id_of(lease), quiesced=True) == "free"


def test_nothing_is_copied_after_a_cancel(pair: tuple[Remote, Remote]) -> None:
    decode, prefill = pair
    target = list(range(POOL_BLOCKS - 4, POOL_BLOCKS))
    lease = decode.reserve("cancelled", prefill.get_incarnation(), target)
    dropped = decode.metric("serval_kv_notifications_dropped_total", reason="closed")
    decode.cancel(lease_id_of(lease))
    assert prefill.send("cancelled", decode.introduction()[1], lease, [0, 1, 2, 3]).error is None
    with pytest.raises(TransferFailed):
        decode.wait(lease_id_of(lease))
    assert decode.release(lease_id_of(lease), quiesced=True) == "free"
    assert not decode.pool_equals(target, [0, 1, 2, 3], seed=1)
    assert decode.metric("serval_kv_notifications_dropped_total", reason="closed") >= dropped


def test_aborts_cancels_and_good_transfers_mixed_leave_nothing_behind(pair: tuple[Remote, Remote]) -> None:
    decode, prefill = pair
    peer, incarnation = decode.introduction()[1], prefill.get_incarnation()
    draw = random.Random(5)
    verified = 0
    for index in range(60):
        name, source = f"mixed-{index}", draw.sample(range(POOL_BLOCKS), draw.randint(1, 12))
        target = draw.sample(range(POOL_BLOCKS), len(source))
        lease = decode.reserve(name, incarnation, target)
        lease_id = lease_id_of(lease)
        prefill.open(name, peer, lease, source)
        fate = draw.choice(["sent", "sent", "aborted", "cancelled"])
        prefill.layers_ready(name, 0, 2, len(source))
        if fate == "cancelled":
            decode.cancel(lease_id)
        if fate == "sent":
            prefill.layers_ready(name, 2, 2, len(source))
            prefill.compute_done(name)
            assert prefill.wait(name).error is None
            decode.wait(lease_id)
            assert decode.pool_equals(target, source, seed=1)
            verified += 1
        quiesced = prefill.abort(peer, lease_id)
        assert quiesced and prefill.wait(name).quiesced
        assert decode.release(lease_id, quiesced) == "free"
    assert verified >= 10
    assert decode.free_blocks() == 256
    assert decode.metric("serval_kv_digest_mismatches_total") == 0
