"""The test fault that holds requests at a point of their way."""

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from worker import hold
from worker.hold import Hold, Point, layers_at


def marker(folder: Path, point: Point) -> Path:
    return folder / f"{point}@decode-0@7.json"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def until_told(path: Path, what: dict[str, object]) -> None:
    until = time.monotonic() + 5
    while not (path.exists() and json.loads(path.read_text()) == {"worker": "decode-0", **what}):
        assert time.monotonic() < until, f"{path.name} does not say {what}"
        time.sleep(0.001)


def ask_for(folder: Path, point: Point) -> Path:
    wish = folder / point
    wish.touch()
    return wish


def test_thirds_of_the_layers() -> None:
    points = (Point.FIRST_THIRD, Point.SECOND_THIRD, Point.LAST_THIRD)
    assert [layers_at(point, 6) for point in points] == [2, 4, 6]
    assert [layers_at(point, 4) for point in points] == [1, 2, 4]


async def test_nothing_is_held_without_a_folder_or_a_wish(tmp_path: Path) -> None:
    async with asyncio.timeout(1):
        await Hold().at(Point.RESERVED, 7, dict)
        await Hold(tmp_path, "decode-0").at(Point.RESERVED, 7, dict)
    assert left(tmp_path) == []


async def test_a_request_stays_and_tells_what_it_is(tmp_path: Path) -> None:
    wish = ask_for(tmp_path, Point.RESERVED)
    facts = {"state": "reserved", "kv_blocks": 3}
    held = asyncio.create_task(Hold(tmp_path, "decode-0").at(Point.RESERVED, 7, lambda: dict(facts)))
    await asyncio.to_thread(until_told, marker(tmp_path, Point.RESERVED), {"state": "reserved", "kv_blocks": 3})
    facts["kv_blocks"] = 4
    await asyncio.to_thread(until_told, marker(tmp_path, Point.RESERVED), {"state": "reserved", "kv_blocks": 4})
    assert not held.done()

    await asyncio.to_thread(wish.unlink)
    await asyncio.wait_for(held, 5)
    assert left(tmp_path) == []


async def test_a_cancelled_request_leaves_no_file(tmp_path: Path) -> None:
    ask_for(tmp_path, Point.RESERVED)
    held = asyncio.create_task(Hold(tmp_path, "decode-0").at(Point.RESERVED, 7, dict))
    await asyncio.to_thread(until_told, marker(tmp_path, Point.RESERVED), {})
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert left(tmp_path) == [Point.RESERVED]


def test_a_thread_is_blocked(tmp_path: Path) -> None:
    wish = ask_for(tmp_path, Point.LAST_THIRD)
    thread = threading.Thread(target=Hold(tmp_path, "decode-0").block, args=(Point.LAST_THIRD, [(7, dict)]))
    thread.start()
    until_told(marker(tmp_path, Point.LAST_THIRD), {})
    assert thread.is_alive()
    wish.unlink()
    thread.join(5)
    assert not thread.is_alive()


async def test_a_hold_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "LONGEST_HOLD_S", 0.05)
    ask_for(tmp_path, Point.RESERVED)
    await asyncio.wait_for(Hold(tmp_path, "decode-0").at(Point.RESERVED, 7, dict), 5)
    assert left(tmp_path) == [Point.RESERVED]


def test_steps_are_slow_only_while_that_is_wanted(tmp_path: Path) -> None:
    worker = Hold(tmp_path, "decode-0")
    worker.slow(Point.DECODING, [(7, dict)])
    assert left(tmp_path) == []
    ask_for(tmp_path, Point.DECODING)
    began = time.monotonic()
    worker.slow(Point.DECODING, [(7, dict)])
    assert time.monotonic() - began >= hold.SLOW_STEP_S
    assert marker(tmp_path, Point.DECODING).exists()
