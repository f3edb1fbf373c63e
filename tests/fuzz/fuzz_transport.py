"""NIXL's notifications and metadata: a real receiver and a real sender, each in its own process, are sent what nobody should."""

import contextlib
import logging
import time
import zlib
from collections.abc import Iterator
from random import Random

import psutil
from fuzz_mutate import EDGES, Mutator
from kvtransfer_support import SMALL, DecodeHost, PrefillHost, Remote

from kvtransfer.notification import CHECKSUM, HEADER, WriteNotification, request_key
from kvtransfer.transport import METADATA_DIGEST_BYTES
from protocol import cluster_pb2
from protocol.errors import ServalError
from protocol.ids import LeaseId, RequestId

BLOCKS = list(range(8))
BATCH = 200


class FuzzedPrefill(PrefillHost):
    """Runs many inputs per call: a call over the pipe costs more than a notification."""

    def quiet(self) -> None:
        logging.disable(logging.WARNING)

    def notify_all(self, peer: int, messages: list[bytes]) -> None:
        from kvtransfer.transport import agent_name

        def act() -> None:
            for message in messages:
                self.sender._transport._agent.send_notif(agent_name(peer), message)

        self.sender._inbox.submit(act).result(60)

    def introduce_all(self, introduction: tuple[object, ...], metadatas: list[bytes]) -> int:
        """How many were taken. Raises what is none of our errors."""
        name, _, _, *rest = introduction
        taken = 0
        for number, metadata in enumerate(metadatas):
            try:
                self.sender.introduce(f"{name}-fuzz", 1000 + number, metadata, *rest).result(30)  # type: ignore[arg-type]
                taken += 1
            except ServalError as error:
                assert "unexpected" not in str(error), error
        return taken

    def is_alive(self) -> bool:
        return self.sender.is_alive


class FuzzedDecode(DecodeHost):
    def quiet(self) -> None:
        """Every input is worth a line to an operator, not to whoever runs this."""
        logging.disable(logging.WARNING)

    def is_alive(self) -> bool:
        self.receiver.check_integrity()
        return self.receiver.is_alive

    def wait_for_dropped(self, count: int, timeout_s: float = 25.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while (dropped := self.metrics.value("serval_kv_notifications_dropped_total")) < count:
            assert time.monotonic() < deadline_s, f"{dropped:g} of {count} notifications were dropped and counted"
            time.sleep(1e-3)


@contextlib.contextmanager
def fuzzed_pair() -> Iterator[tuple[Remote, Remote]]:
    """An introduced pair; at the end both must be able to end in order."""
    decode, prefill = Remote(FuzzedDecode), Remote(FuzzedPrefill)
    try:
        decode.quiet()
        prefill.quiet()
        prefill.introduce(*decode.introduction())
        yield decode, prefill
        for remote in (prefill, decode):
            assert remote.end() == 0, "the process aborted while closing"
    finally:
        for remote in (prefill, decode):
            remote.kill()


def notifications(valid: WriteNotification, count: int, seed: int) -> Iterator[bytes]:
    """Changed ones, and such whose checksum is right and one field of which is not: they name a lease that is open."""
    draw = Random(seed)
    changed = Mutator(f"notifications {seed}").of((valid.encode(),), count)
    for number, data in enumerate(changed):
        if number % 2:
            yield data
        else:
            body = bytearray(valid.encode()[: -CHECKSUM.size])
            at = draw.randrange(8, HEADER.size)  # behind magic, version and flags
            value = draw.choice(EDGES).to_bytes(8, "little")[: draw.choice((1, 4, 8))]
            body[at : at + len(value)] = value
            yield bytes(body) + CHECKSUM.pack(zlib.crc32(body))


def fuzz_notifications(count: int, seed: int) -> dict[str, int]:
    """Sends them while a lease is open. None may be taken for its write; its own transfer must then land whole."""
    with fuzzed_pair() as (decode, prefill):
        peer, sender = decode.introduction()[1], prefill.get_incarnation()
        lease = decode.reserve("fuzzed", sender, BLOCKS)
        lease_id = cluster_pb2.WriteLease.FromString(lease).lease_id
        key = request_key(RequestId("fuzzed"))
        valid = WriteNotification(sender, peer, LeaseId(lease_id), key, 0, 0, 0, 1, 0, len(BLOCKS), ())
        inputs = [each for each in notifications(valid, count, seed) if not _would_be_taken(each, valid)]
        before = 0.0, 0
        for sent in range(BATCH, len(inputs) + BATCH, BATCH):
            prefill.notify_all(peer, inputs[sent - BATCH : sent])
            decode.wait_for_dropped(min(sent, len(inputs)))
            before = before if sent > BATCH else _use(decode)
        assert decode.is_alive() and not decode.is_done(lease_id)
        assert decode.pool_is_zero(), "something was copied into the pool"
        assert prefill.send("fuzzed", peer, lease, BLOCKS).error is None
        decode.wait(lease_id)
        assert decode.pool_equals(BLOCKS, BLOCKS, 1)
        assert decode.release(lease_id, quiesced=True) == "free"
        _assert_no_growth(before, _use(decode))
        return {"notifications over NIXL": len(inputs)}


def fuzz_metadata(count: int, seed: int) -> dict[str, int]:
    """Introduces decode workers by what is none of theirs. The sender lives on, and its one true peer can still be written to."""
    with fuzzed_pair() as (decode, prefill):
        introduction = decode.introduction()
        metadata = introduction[2]
        inputs = list(Mutator(f"metadata {seed}").of((metadata, metadata[METADATA_DIGEST_BYTES:]), count))
        inputs = [each for each in inputs if each != metadata]
        prefill.introduce_all(introduction, inputs[:BATCH])
        before = _use(prefill)
        for begin in range(0, len(inputs), BATCH):
            assert prefill.introduce_all(introduction, inputs[begin : begin + BATCH]) == 0
        assert prefill.is_alive()
        lease = decode.reserve("after", prefill.get_incarnation(), BLOCKS)
        assert prefill.send("after", introduction[1], lease, BLOCKS).error is None
        decode.wait(cluster_pb2.WriteLease.FromString(lease).lease_id)
        _assert_no_growth(before, _use(prefill))
        return {"NIXL metadata": len(inputs)}


def _would_be_taken(data: bytes, valid: WriteNotification) -> bool:
    """A change that names the open lease in all that counts, and lies within it."""
    try:
        changed = WriteNotification.decode(data)
    except ServalError:
        return False
    named = ("sender", "receiver", "lease_id", "request_key", "attempt")
    lies_within = changed.first_layer + changed.layers <= SMALL.layers and changed.first_block + changed.blocks <= len(BLOCKS)
    return lies_within and all(getattr(changed, name) == getattr(valid, name) for name in named)


def _use(host: Remote) -> tuple[float, int]:
    process = psutil.Process(host.process.pid)
    return process.memory_info().rss / 2**20, process.num_fds()


def _assert_no_growth(before: tuple[float, int], after: tuple[float, int]) -> None:
    assert after[0] < before[0] + 24, f"RSS grew from {before[0]:.0f} to {after[0]:.0f} MiB"
    assert after[1] <= before[1] + 2, f"descriptors grew from {before[1]} to {after[1]}"
