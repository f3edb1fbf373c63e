"""Parsers that can be called, driven by hypothesis: each input comes back as it was or is refused with the error that is meant."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from fuzz_mutate import BODIES, FROM_WORKER, GENERATE, PREFILL_STREAMS, PREFILL_UNARY, Mutator
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from kvtransfer.notification import CHECKSUM, MalformedNotification, WriteNotification
from protocol import cluster_pb2, serval_pb2
from protocol.errors import InvalidRequest
from protocol.ids import LeaseId
from protocol.sampling import SamplingParams
from router.openai.parse import parse
from router.openai.requests import ChatRequest, CompletionRequest

U64, U32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
NOTIFICATIONS = st.builds(
    WriteNotification,
    sender=U64,
    receiver=U64,
    lease_id=U64,
    request_key=U64,
    attempt=U32,
    sequence=U32,
    first_layer=U32,
    layers=st.integers(1, 8),
    first_block=U32,
    blocks=st.integers(1, 2**32 - 1),
    digests=st.just(()),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes of a valid input exchanged, cut, or put in."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


def read_notification(data: bytes) -> None:
    try:
        notification = WriteNotification.decode(data)
    except MalformedNotification:
        return
    assert notification.encode() == data


def read_resealed_notification(data: bytes) -> None:
    """With a checksum that is right: only the fields are left to be wrong."""
    read_notification(data[: -CHECKSUM.size] + CHECKSUM.pack(zlib.crc32(data[: -CHECKSUM.size])))


def read_sampling(data: bytes) -> None:
    try:
        message = serval_pb2.GenerateRequest.FromString(data)
    except DecodeError:
        return
    params = SamplingParams.from_proto(message.sampling, 64)
    try:
        params.validate(300)
    except InvalidRequest as error:
        assert str(error)
    else:
        assert SamplingParams.from_proto(params.to_proto(), 64) == params


def read_messages(data: bytes) -> None:
    """What processes say to each other: protobuf's own reader, which must refuse in its one way."""
    for kind in (cluster_pb2.FromWorker, cluster_pb2.FromRouter, cluster_pb2.PrefillRequest, cluster_pb2.PrefillEvent):
        try:
            kind.FromString(data)
        except DecodeError:
            continue


def read_body(data: bytes) -> None:
    for kind in (ChatRequest, CompletionRequest):
        try:
            parse(kind, data)
        except InvalidRequest as error:
            assert str(error)


_GENERATE = tuple(each.SerializeToString() for each in GENERATE)
_BODIES = [json.dumps(body).encode() for bodies in BODIES.values() for body in bodies]


def _bodies() -> st.SearchStrategy[bytes]:
    valid = [body for bodies in BODIES.values() for body in bodies]
    fields = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
    return st.builds(
        lambda body, more: json.dumps({**body, **more}).encode(),
        st.sampled_from(valid),
        st.dictionaries(st.sampled_from(fields), JSON, max_size=3),
    )


@dataclass(frozen=True)
class Parser:
    """What reads, its inputs by hypothesis, and valid ones to change at random."""

    name: str
    read: Callable[[bytes], None]
    inputs: st.SearchStrategy[bytes]
    corpus: tuple[bytes, ...]


_NOTIFICATION = tuple(
    WriteNotification(1, 2, LeaseId(3), 4, 0, sequence, 0, layers, 0, 5, tuple(range(layers)) if layers % 2 else ()).encode()
    for sequence, layers in enumerate((1, 2, 3, 8))
)
_MESSAGES = tuple(each.SerializeToString() for each in FROM_WORKER)
_CALLS = tuple(each for corpus in (PREFILL_STREAMS | PREFILL_UNARY).values() for each in corpus)

PARSERS = (
    Parser(
        "notification",
        read_notification,
        changed(NOTIFICATIONS.map(WriteNotification.encode)) | st.binary(max_size=200),
        _NOTIFICATION,
    ),
    Parser(
        "notification, resealed",
        read_resealed_notification,
        changed(NOTIFICATIONS.map(WriteNotification.encode)),
        _NOTIFICATION,
    ),
    Parser("sampling", read_sampling, changed(st.sampled_from(_GENERATE)), _GENERATE),
    Parser("messages between processes", read_messages, changed(st.sampled_from(_MESSAGES + _CALLS)), _MESSAGES + _CALLS),
    Parser("HTTP body", read_body, changed(_bodies()) | _bodies(), tuple(_BODIES)),
)


def fuzz_by_hypothesis(count: int, seed_number: int) -> dict[str, int]:
    """So many inputs over all parsers. Raises what a parser raises that it should not, with hypothesis' smallest input."""
    return {parser.name: _explore(parser, count // len(PARSERS), seed_number) for parser in PARSERS}


def fuzz_by_change(count: int, seed_number: int) -> dict[str, int]:
    """The same by random changes: a hundred times as many in the same time, none of them made smaller."""
    for parser in PARSERS:
        for data in Mutator(f"{seed_number} {parser.name}").of(parser.corpus, count // len(PARSERS)):
            try:
                parser.read(data)
            except Exception as error:
                raise AssertionError(f"{parser.name}: {data!r}") from error
    return {parser.name: count // len(PARSERS) for parser in PARSERS}


def _explore(parser: Parser, count: int, seed_number: int) -> int:
    seen = 0

    @seed(seed_number)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(parser.inputs)
    def fuzz(data: bytes) -> None:
        nonlocal seen
        seen += 1
        parser.read(data)

    fuzz()
    return seen
