"""A worker keeps a bounded number of bytes for a router, and they leave in order."""

import asyncio

import pytest

from protocol import cluster_pb2
from worker.outbox import Outbox

SIZE = 1000


def message(number: int) -> cluster_pb2.FromWorker:
    output = cluster_pb2.RequestOutput(request=number, ended=cluster_pb2.Ended(message="x" * SIZE))
    return cluster_pb2.FromWorker(step=cluster_pb2.StepOutput(outputs=[output]))


def number_of(told: cluster_pb2.FromWorker) -> int:
    return told.step.outputs[0].request


@pytest.fixture
def full() -> list[str]:
    return []


@pytest.fixture
def outbox(full: list[str]) -> Outbox:
    return Outbox(10 * (SIZE + 100), on_full=lambda: full.append("full"))


async def test_messages_leave_in_order_and_the_stream_ends_behind_them(outbox: Outbox, full: list[str]) -> None:
    for number in range(5):
        outbox.put(message(number))
    assert 4 * SIZE < outbox.waiting_bytes < 4 * (SIZE + 100), "the first goes out next"
    outbox.close()
    assert [number_of(told) async for told in outbox.messages()] == list(range(5))
    assert (outbox.waiting_bytes, full) == (0, [])


async def test_what_is_taken_makes_room(outbox: Outbox, full: list[str]) -> None:
    reader = outbox.messages()
    for number in range(1000):
        outbox.put(message(number))
        if number >= 8:
            assert number_of(await asyncio.wait_for(anext(reader), 1)) == number - 8
    assert full == []


async def test_more_than_the_bound_drops_all_and_is_said_once(outbox: Outbox, full: list[str]) -> None:
    for number in range(11):
        outbox.put(message(number))
    assert full == []
    for number in range(20):
        outbox.put(message(number))
        assert outbox.waiting_bytes == 0
    assert full == ["full"]
    outbox.close()
    assert [told async for told in outbox.messages()] == []
