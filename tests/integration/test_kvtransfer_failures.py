"""How the transport fails, each with what must hold: deadlines, fences, no late byte, no dead thread, no aborted process."""

import time

import pytest
from kvtransfer_support import ALL_LARGE, LARGE, POOL_BLOCKS, SMALL, DecodeHost, Remote, lease_of, pair

from kvtransfer.notification import WriteNotification, request_key
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, LeaseExpired, Overloaded, PeerGone, TransferFailed

pytestmark = pytest.mark.cluster

MARK = 0x5A5A5A5A5A5A5A5A


def test_a_stopped_peer_ends_at_the_deadline_and_its_slot_can_be_fenced_later() -> None:
    large = {"layout": LARGE, "transports": "tcp"}
    with pair(large, {**large, "write_timeout_s": 0.5, "barrier_timeout_s": 0.3}) as (decode, prefill):
        peer = decode.introduction()[1]
        lease = decode.reserve("stopped", prefill.get_incarnation(), ALL_LARGE)
        decode.pause()
        started_s = time.monotonic()
        sent = prefill.send("stopped", peer, lease, ALL_LARGE)
        assert time.monotonic() - started_s < 3.0
        assert isinstance(sent.error, TransferFailed) and not sent.quiesced
        decode.resume()
        assert decode.release(lease_of(lease).lease_id, quiesced=False) == "quarantined"
        # It lives again: the lease can be fenced now, and only then is the slot free.
        deadline_s = time.monotonic() + 10
        while not prefill.abort(peer, lease_of(lease).lease_id):
            assert time.monotonic() < deadline_s
        assert decode.release(lease_of(lease).lease_id, quiesced=True) == "free"
        decode.fill_zone(0, 256, MARK)
        decode.busy(0.3)
        assert decode.count_changed(0, 256, MARK) == 0


def test_abandoned_bytes_are_fenced_before_the_slot_is_used_again() -> None:
    large = {"layout": LARGE, "transports": "tcp"}
    with pair(large, large) as (decode, prefill):
        peer = decode.introduction()[1]
        for attempt in range(3):
            lease = decode.reserve(f"abandoned-{attempt}", prefill.get_incarnation(), ALL_LARGE)
            quiesced = prefill.start_and_abort(f"abandoned-{attempt}", peer, lease, ALL_LARGE, 0.02)
            sent = prefill.wait(f"abandoned-{attempt}")
            assert quiesced and sent.quiesced and isinstance(sent.error, TransferFailed)
            assert sent.writes > 0
            decode.fill_zone(0, 256, MARK)
            assert decode.release(lease_of(lease).lease_id, quiesced=True) == "free"
            time.sleep(0.2)
            assert decode.count_changed(0, 256, MARK) == 0


def test_a_killed_sender_leaves_no_late_byte_after_the_pump() -> None:
    large = {"layout": LARGE, "transports": "tcp"}
    with pair({**large, "pump_s": 1.0}, large) as (decode, prefill):
        peer, incarnation = decode.introduction()[1], prefill.get_incarnation()
        lease = decode.reserve("killed", incarnation, ALL_LARGE)
        prefill.begin("send", "killed", peer, lease, ALL_LARGE)
        time.sleep(0.03)
        prefill.kill()
        decode.peer_gone(incarnation)
        lease_id = lease_of(lease).lease_id
        assert decode.state(lease_id) == "pumping"
        with pytest.raises(TransferFailed):
            decode.wait(lease_id)
        assert decode.wait_for_state(lease_id, "free") >= 0.9
        decode.fill_zone(0, 256, MARK)
        time.sleep(0.3)
        assert decode.count_changed(0, 256, MARK) == 0
        assert decode.free_blocks() == 256


def test_a_dead_peer_is_an_error_at_once_and_its_successor_works() -> None:
    with pair() as (decode, prefill):
        source = [1, 2, 3]
        for cycle in range(5):
            introduction = decode.introduction()
            prefill.introduce(*introduction)
            prefill.introduce(*introduction)  # idempotent
            lease = decode.reserve(f"cycle-{cycle}", prefill.get_incarnation(), source)
            assert prefill.send(f"cycle-{cycle}", introduction[1], lease, source).error is None
            decode.wait(lease_of(lease).lease_id)
            assert decode.pool_equals(source, source, seed=1)
            successor = Remote(DecodeHost)
            open_lease = decode.reserve("dead", prefill.get_incarnation(), source)
            decode.kill()
            started_s = time.monotonic()
            sent = prefill.send("dead", introduction[1], open_lease, source)
            assert isinstance(sent.error, PeerGone)
            assert time.monotonic() - started_s < 0.5
            with pytest.raises(LeaseExpired):  # its first write may have landed
                prefill.send("dead", introduction[1], open_lease, source)
            decode = successor
        # The last successor was never introduced: the prefill process must end in order right after a peer's death.
        assert prefill.end() == 0
        assert decode.ready().end() == 0


def test_a_broken_connection_to_a_living_peer_is_made_again() -> None:
    large = {"layout": LARGE, "transports": "tcp", "landing_bytes": 300 * LARGE.block_bytes}
    with pair(large, {"layout": LARGE, "transports": "tcp"}) as (decode, prefill):
        peer, incarnation = decode.introduction()[1], prefill.get_incarnation()
        broken = decode.reserve("before", incarnation, ALL_LARGE)
        prefill.start_and_break("before", peer, broken, ALL_LARGE)
        sent = prefill.wait("before")
        assert isinstance(sent.error, PeerGone) and not sent.quiesced
        assert decode.release(lease_of(broken).lease_id, quiesced=False) == "quarantined"
        # No second introduction: the pair is healthy.
        lease = decode.reserve("after", incarnation, [70, 71])
        assert prefill.send("after", peer, lease, [1, 2]).error is None
        decode.wait(lease_of(lease).lease_id)
        assert decode.pool_equals([70, 71], [1, 2], seed=1)
        # A barrier on the new connection says nothing about writes on the old one.
        assert prefill.abort(peer, lease_of(broken).lease_id) is False


def test_an_old_incarnation_is_removed_when_its_successor_is_introduced() -> None:
    with pair() as (decode, prefill):
        old = decode.introduction()
        lease = decode.reserve("old", prefill.get_incarnation(), [1])
        successor = Remote(DecodeHost)
        prefill.open("old", old[1], lease, [1])
        prefill.introduce(*successor.introduction())
        assert isinstance(prefill.wait("old").error, PeerGone)
        with pytest.raises(PeerGone):
            prefill.open("again", old[1], lease, [1])
        lease = successor.reserve("new", prefill.get_incarnation(), [7])
        assert prefill.send("new", successor.introduction()[1], lease, [3]).error is None
        successor.wait(lease_of(lease).lease_id)
        assert successor.pool_equals([7], [3], seed=1)
        assert successor.end() == 0


def test_strangers_are_refused_before_the_first_byte() -> None:
    with pair() as (decode, prefill):
        _, peer, metadata, address, blocks, fingerprint = decode.introduction()
        with pytest.raises(InvalidRequest, match="layouts differ"):
            prefill.introduce("other", peer + 1, metadata, address, blocks, fingerprint + "x")
        with pytest.raises(TransferFailed):
            prefill.introduce("other", peer + 1, b"garbage", address, blocks, fingerprint)
        with pytest.raises(TransferFailed):
            prefill.introduce("other", peer + 1, b"", address, blocks, fingerprint)
        stranger = Remote(DecodeHost)
        theirs = stranger.introduction()
        with pytest.raises(TransferFailed, match="not of"):
            prefill.introduce("other", peer + 1, theirs[2], address, blocks, fingerprint)
        with pytest.raises(TransferFailed):
            prefill.introduce(theirs[0] + "x", theirs[1], theirs[2], theirs[3] + 4096, theirs[4], theirs[5])
        lease = lease_of(decode.reserve("range", prefill.get_incarnation(), [1, 2]))
        outside = cluster_pb2.WriteLease(
            lease_id=99, first_landing_block=blocks - 8, blocks=2, duration_s=5, landing_address=address
        )
        for bad_lease, source in [(outside, [1, 2]), (lease, [1]), (lease, [1, 1]), (lease, [1, POOL_BLOCKS])]:
            with pytest.raises(InvalidRequest):
                prefill.open("range", peer, bad_lease.SerializeToString(), source)
        for target in ([], [-1], [POOL_BLOCKS], [3, 3], list(range(65))):
            with pytest.raises(InvalidRequest):
                decode.reserve("range", prefill.get_incarnation(), target)
        decode.reserve("fills", prefill.get_incarnation(), list(range(62)))
        with pytest.raises(Overloaded):
            decode.reserve("full", prefill.get_incarnation(), [1])
        assert decode.pool_is_zero()
        assert stranger.end() == 0


def test_notifications_that_match_no_expected_write_are_dropped_and_counted() -> None:
    with pair() as (decode, prefill):
        peer, incarnation = decode.introduction()[1], prefill.get_incarnation()
        lease_id = lease_of(decode.reserve("victim", incarnation, [1, 2])).lease_id
        good = {
            "sender": incarnation,
            "receiver": peer,
            "lease_id": lease_id,
            "request_key": request_key("victim"),
            "attempt": 0,
            "sequence": 0,
            "first_layer": 0,
            "layers": SMALL.layers,
            "first_block": 0,
            "blocks": 2,
            "digests": (1,) * SMALL.layers,
        }
        forged = {
            "foreign": {"receiver": peer + 1},
            "wrong_peer": {"sender": incarnation + 1},
            "unknown_lease": {"lease_id": 12345},
            "wrong_request": {"request_key": 1},
            "wrong_attempt": {"attempt": 7},
            "out_of_range": {"first_block": 1},
        }
        encoded = {reason: WriteNotification(**{**good, **change}).encode() for reason, change in forged.items()}
        encoded["malformed"] = b"\x00garbage" * 20
        for reason, message in encoded.items():
            prefill.notify(peer, message)
            assert _wait_for_drop(decode, reason) == 1
        assert not decode.is_done(lease_id)
        assert decode.pool_is_zero()
        # A write that is announced but whose bytes never came: the digest finds it.
        prefill.notify(peer, WriteNotification(**good).encode())
        with pytest.raises(TransferFailed, match="digest"):
            decode.wait(lease_id)
        prefill.notify(peer, WriteNotification(**good).encode())
        assert _wait_for_drop(decode, "closed") == 1


def test_a_repeated_notification_is_dropped() -> None:
    with pair() as (decode, prefill):
        peer, incarnation = decode.introduction()[1], prefill.get_incarnation()
        lease = decode.reserve("twice", incarnation, [1, 2])
        lease_id = lease_of(lease).lease_id
        prefill.open("twice", peer, lease, [5, 6])
        # The digest of an untouched landing block is 0.
        zeros = WriteNotification(incarnation, peer, lease_id, request_key("twice"), 0, 0, 0, 1, 0, 1, digests=(0,)).encode()
        prefill.notify(peer, zeros)
        prefill.notify(peer, zeros)
        assert _wait_for_drop(decode, "duplicate") == 1
        assert not decode.is_done(lease_id)


def test_a_receiver_that_does_not_poll_delays_and_loses_nothing() -> None:
    with pair({"transports": "tcp"}, {"transports": "tcp"}) as (decode, prefill):
        blocks = list(range(32))
        lease = decode.reserve("slow", prefill.get_incarnation(), blocks)
        decode.busy(0.7)
        started_s = time.monotonic()
        assert prefill.send("slow", decode.introduction()[1], lease, blocks).error is None
        assert time.monotonic() - started_s > 0.3
        decode.wait(lease_of(lease).lease_id)
        assert decode.pool_equals(blocks, blocks, seed=1)


def test_leases_end_on_both_clocks_and_the_slot_waits_for_proof() -> None:
    settings = {"lease_s": 0.6, "lease_margin_s": 0.2, "pump_s": 0.2}
    with pair(settings, settings) as (decode, prefill):
        peer, incarnation = decode.introduction()[1], prefill.get_incarnation()
        lease = decode.reserve("expires", incarnation, [1, 2])
        lease_id = lease_of(lease).lease_id
        prefill.open("expires", peer, lease, [1, 2])
        prefill.layers_ready("expires", 0, 2, 2)  # compute never gets further
        sent = prefill.wait("expires")
        assert isinstance(sent.error, LeaseExpired) and sent.quiesced
        with pytest.raises(LeaseExpired):
            decode.wait(lease_id)
        decode.wait_for_state(lease_id, "quarantined")
        assert decode.metric("serval_kv_slots_quarantined_total", reason="expired") == 1
        assert decode.release(lease_id, quiesced=False) == "quarantined"
        assert decode.free_blocks() == 248
        assert decode.release(lease_id, quiesced=True) == "free"
        assert decode.release(lease_id, quiesced=True) == "free"  # again: nothing happens
        # Unconfirmed, and the process is gone: proof of another kind.
        second = lease_of(decode.reserve("gone", incarnation, [3])).lease_id
        assert decode.release(second, quiesced=False) == "quarantined"
        prefill.kill()
        decode.peer_gone(incarnation)
        assert decode.wait_for_state(second, "free") >= 0.15
        assert decode.free_blocks() == 256


def _wait_for_drop(decode: Remote, reason: str) -> float:
    deadline_s = time.monotonic() + 5
    while not (count := decode.metric("serval_kv_notifications_dropped_total", reason=reason)):
        assert time.monotonic() < deadline_s, f"no notification was dropped as {reason}"
    return float(count)
