"""Notifications: exact round trip; any other bytes are an error of one kind."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.notification import HEADER, MalformedNotification, WriteNotification, request_key

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


@st.composite
def notifications(draw: st.DrawFn) -> WriteNotification:
    layers = draw(st.integers(1, 40))
    digests = draw(st.one_of(st.just(()), st.tuples(*[U64] * layers)))
    ints = [draw(U64) for _ in range(4)] + [draw(U32) for _ in range(3)]
    return WriteNotification(*ints, layers, draw(U32), draw(st.integers(1, 2**32 - 1)), digests)


@given(notifications())
def test_round_trip(notification: WriteNotification) -> None:
    assert WriteNotification.decode(notification.encode()) == notification


@given(st.binary(max_size=300))
def test_garbage_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedNotification):
        WriteNotification.decode(data)


@given(notifications(), st.data())
def test_a_changed_byte_is_malformed(notification: WriteNotification, data: st.DataObject) -> None:
    encoded = bytearray(notification.encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedNotification):
        WriteNotification.decode(bytes(encoded))


@given(notifications(), st.integers(1, 200))
def test_a_cut_or_lengthened_one_is_malformed(notification: WriteNotification, count: int) -> None:
    encoded = notification.encode()
    for changed in (encoded[:-count], encoded + b"\0" * count):
        with pytest.raises(MalformedNotification):
            WriteNotification.decode(changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, b"XXXX"), (1, 2), (2, 2), (10, 0), (10, 5000), (12, 0)],
    ids=["magic", "version", "flags", "no layers", "too many layers", "no blocks"],
)
def test_a_wrong_field_with_a_right_checksum_is_malformed(field: int, value: object) -> None:
    good = WriteNotification(1, 2, 3, 4, 5, 6, 7, 2, 9, 10, (11, 12)).encode()[:-4]
    fields: list[object] = list(HEADER.unpack_from(good))
    fields[field] = value
    body = HEADER.pack(*fields) + good[HEADER.size :]
    with pytest.raises(MalformedNotification):
        WriteNotification.decode(body + struct.pack("<I", zlib.crc32(body)))


def test_requests_have_different_keys() -> None:
    assert len({request_key(f"request-{i}") for i in range(1000)}) == 1000
