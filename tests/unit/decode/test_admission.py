"""The admission line: first come, first served, nothing lost when somebody leaves."""

import asyncio

import pytest

from decode.admission import AdmissionLine
from protocol.errors import InvalidRequest, Overloaded
from telemetry.metrics import Metrics


class Room:
    """`free` places; each taker notes his name."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.takers: list[str] = []

    def taker(self, name: str, size: int = 1):
        def attempt() -> bool:
            if self.free < size:
                return False
            self.free -= size
            self.takers.append(name)
            return True

        return attempt


def make_line(max_waiting: int) -> AdmissionLine:
    return AdmissionLine(max_waiting, Metrics("decode", "test"))


async def settle() -> None:
    """Lets every task that can run reach its next wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_fits_enters_at_once() -> None:
    room, line = Room(1), make_line(max_waiting=1)
    await asyncio.wait_for(line.enter(room.taker("a")), 1)
    assert room.takers == ["a"] and len(line) == 0


async def test_the_line_is_first_come_first_served_even_when_a_later_one_would_fit() -> None:
    room, line = Room(0), make_line(max_waiting=10)
    big = asyncio.create_task(line.enter(room.taker("big", size=2)))
    await settle()
    small = asyncio.create_task(line.enter(room.taker("small")))
    await settle()
    room.free = 1
    line.advance()
    assert room.takers == []
    room.free = 3
    line.advance()
    await asyncio.wait_for(asyncio.gather(big, small), 1)
    assert room.takers == ["big", "small"]


async def test_a_newcomer_does_not_overtake_the_line() -> None:
    room, line = Room(0), make_line(max_waiting=10)
    first = asyncio.create_task(line.enter(room.taker("first")))
    await settle()
    room.free = 1
    second = asyncio.create_task(line.enter(room.taker("second")))
    await settle()
    assert room.takers == []
    line.advance()
    await asyncio.wait_for(first, 1)
    assert room.takers == ["first"] and not second.done()
    second.cancel()


async def test_a_full_line_refuses() -> None:
    room, line = Room(0), make_line(max_waiting=1)
    waiting = asyncio.create_task(line.enter(room.taker("a")))
    await settle()
    with pytest.raises(Overloaded):
        await line.enter(room.taker("b"))
    waiting.cancel()


async def test_who_leaves_takes_nothing_and_those_behind_move_up() -> None:
    room, line = Room(1), make_line(max_waiting=10)
    big = asyncio.create_task(line.enter(room.taker("big", size=2)))
    await settle()
    small = asyncio.create_task(line.enter(room.taker("small")))
    await settle()
    big.cancel()
    await asyncio.wait_for(small, 1)
    assert room.takers == ["small"] and len(line) == 0


async def test_an_attempt_that_raises_ends_only_its_own_wait() -> None:
    room, line = Room(0), make_line(max_waiting=10)
    calls = 0

    def impossible() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            return False
        raise InvalidRequest("never fits")

    bad = asyncio.create_task(line.enter(impossible))
    await settle()
    good = asyncio.create_task(line.enter(room.taker("good")))
    await settle()
    room.free = 1
    line.advance()
    with pytest.raises(InvalidRequest):
        await bad
    await asyncio.wait_for(good, 1)
    assert room.takers == ["good"]


async def test_the_gauge_shows_how_many_wait() -> None:
    metrics = Metrics("decode", "test")
    room, line = Room(0), AdmissionLine(10, metrics)
    waiting = [asyncio.create_task(line.enter(room.taker(name))) for name in "abc"]
    await settle()
    assert metrics.value("serval_num_requests_waiting_for_blocks") == 3
    waiting[1].cancel()
    await settle()
    assert metrics.value("serval_num_requests_waiting_for_blocks") == 2
    room.free = 2
    line.advance()
    await settle()
    assert metrics.value("serval_num_requests_waiting_for_blocks") == 0
    assert room.takers == ["a", "c"]
