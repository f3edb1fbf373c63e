"""What a write tells its receiver when it has landed: which write of whose lease it was, and the digests of its layers.

Wire format, little-endian: the header below, then one 64-bit digest per layer when the flag says so, then a CRC-32 of both.
Nothing in it is trusted: parsing is strict, and the receiver matches every field with what it expects.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass

from protocol.errors import TransferFailed
from protocol.ids import Incarnation, LeaseId, RequestId

MAGIC = b"SVKV"
VERSION = 1
HAS_DIGESTS = 1
MAX_LAYERS = 4096

HEADER = struct.Struct("<4sHHQQQQIIIIII")
CHECKSUM = struct.Struct("<I")


class MalformedNotification(TransferFailed):
    """Bytes that are no notification of this version."""


@dataclass(frozen=True)
class WriteNotification:
    """One landed write: blocks [first_block, first_block + blocks) of layers [first_layer, first_layer + layers) of a lease.

    Blocks count within the lease. `digests` has one digest per layer, or is empty when the sender computes none.
    """

    sender: Incarnation
    receiver: Incarnation
    lease_id: LeaseId
    request_key: int
    attempt: int
    sequence: int
    """Counts the writes of a lease from 0, in the order in which they were posted."""
    first_layer: int
    layers: int
    first_block: int
    blocks: int
    digests: tuple[int, ...]

    def encode(self) -> bytes:
        flags = HAS_DIGESTS if self.digests else 0
        header = HEADER.pack(
            MAGIC,
            VERSION,
            flags,
            self.sender,
            self.receiver,
            self.lease_id,
            self.request_key,
            self.attempt,
            self.sequence,
            self.first_layer,
            self.layers,
            self.first_block,
            self.blocks,
        )
        body = header + struct.pack(f"<{len(self.digests)}Q", *self.digests)
        return body + CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def decode(cls, data: bytes) -> "WriteNotification":
        """Raises MalformedNotification for anything but the exact output of `encode`."""
        if len(data) < HEADER.size + CHECKSUM.size:
            raise MalformedNotification(f"{len(data)} bytes are too few for a notification")
        body, checksum = data[: -CHECKSUM.size], data[-CHECKSUM.size :]
        if CHECKSUM.unpack(checksum)[0] != zlib.crc32(body):
            raise MalformedNotification("checksum differs")
        magic, version, flags, *fields = HEADER.unpack_from(body)
        if magic != MAGIC or version != VERSION or flags & ~HAS_DIGESTS:
            raise MalformedNotification(f"not a notification of version {VERSION}: {magic!r} {version} {flags}")
        layers, blocks = fields[7], fields[9]
        if not 1 <= layers <= MAX_LAYERS or blocks < 1:
            raise MalformedNotification(f"{layers} layers of {blocks} blocks")
        count = layers if flags & HAS_DIGESTS else 0
        if len(body) != HEADER.size + 8 * count:
            raise MalformedNotification(f"{len(body) - HEADER.size} bytes of digests for {count} layers")
        digests = struct.unpack_from(f"<{count}Q", body, HEADER.size)
        return cls(*fields, digests)  # type: ignore[call-arg]  # ten header fields, in the order of the class


def request_key(request_id: RequestId) -> int:
    """64 bits that stand for a request in notifications."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")
