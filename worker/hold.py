"""Test fault: requests stop at a named point of their way until a test lets them go, so that a fault hits exactly there.

A test gives workers a folder (`link.hold_folder`) and makes an empty file in it that is called like a `Point`. While it is there,
every request that comes to that point stays, and says so in `POINT@WORKER@KEY.json`: its state in the lifecycle's words, its
prompt's length, what it holds. The file goes when the request does. Without a folder nothing here costs more than one comparison.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

LONGEST_HOLD_S = 60.0
"""A test that dies lets go too."""
LOOK_PERIOD_S = 0.01
SLOW_STEP_S = 0.3
"""Between two steps while `Point.DECODING` is held: the answers go on, token by token, and none ends soon."""

Facts = Callable[[], dict[str, Any]]
"""What a test wants to know of a request that is held, as of now."""


class Point(StrEnum):
    """Where requests can be held, in the order in which they come there."""

    DECODE_QUEUED = "decode-queued"
    """At the decode worker, which holds nothing for it yet."""
    RESERVED = "reserved"
    """KV blocks and landing slot are held; the prefill worker has not been called."""
    PREFILL_QUEUED = "prefill-queued"
    """At the prefill worker, before its first chunk."""
    FIRST_THIRD = "first-third"
    """In the engine's thread, when a third of the layers is computed: that much can be sent."""
    SECOND_THIRD = "second-third"
    LAST_THIRD = "last-third"
    """All layers are computed, and the first token is not known yet."""
    FIRST_TOKEN = "first-token"
    """The first token went out; the last third of the layers is not sent."""
    DECODING = "decoding"
    """Steps follow each other slowly."""


THIRDS = (Point.FIRST_THIRD, Point.SECOND_THIRD, Point.LAST_THIRD)


def layers_at(point: Point, layers: int) -> int:
    """How many of a model's layers are computed at a third."""
    return layers * (THIRDS.index(point) + 1) // len(THIRDS)


class Hold:
    """One worker's end of it. `folder` None (always, outside tests): nothing is ever held."""

    def __init__(self, folder: Path | None = None, worker: str = "") -> None:
        self._folder = folder
        self._worker = worker

    def wants(self, point: Point) -> bool:
        return self._folder is not None and (self._folder / point).exists()

    async def at(self, point: Point, key: object, facts: Facts) -> None:
        """A request stays here, on the event loop, while the point is held."""
        if self.wants(point):
            with self._marked(point, [(key, facts)]) as mark:
                for _ in self._looks(point):
                    mark()
                    await asyncio.sleep(LOOK_PERIOD_S)

    def block(self, point: Point, held: Sequence[tuple[object, Facts]]) -> None:
        """Several stay, in another thread than the event loop's, and all of that thread with them."""
        if held and self.wants(point):
            with self._marked(point, held) as mark:
                for _ in self._looks(point):
                    mark()
                    time.sleep(LOOK_PERIOD_S)

    def slow(self, point: Point, held: Sequence[tuple[object, Facts]]) -> None:
        """A step of several takes long. Their files stay."""
        if self.wants(point):
            for key, facts in held:
                self._write(self._path(point, key), facts())
            time.sleep(SLOW_STEP_S)

    def _looks(self, point: Point) -> Iterator[None]:
        until = time.monotonic() + LONGEST_HOLD_S
        while self.wants(point) and time.monotonic() < until:
            yield

    @contextlib.contextmanager
    def _marked(self, point: Point, held: Sequence[tuple[object, Facts]]) -> Iterator[Callable[[], None]]:
        paths = {self._path(point, key): facts for key, facts in held}
        written: dict[Path, dict[str, Any]] = {}

        def mark() -> None:
            for path, facts in paths.items():
                if (now := facts()) != written.get(path):
                    self._write(path, now)
                    written[path] = now

        try:
            yield mark
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def _path(self, point: Point, key: object) -> Path:
        assert self._folder is not None
        return self._folder / f"{point}@{self._worker}@{key}.json"

    def _write(self, path: Path, facts: dict[str, Any]) -> None:
        """Whole or not at all, for whoever reads meanwhile. A folder that is gone held nothing worth an error."""
        partial = path.with_suffix(".partial")
        with contextlib.suppress(FileNotFoundError):
            partial.write_text(json.dumps({"worker": self._worker, **facts}))
            partial.rename(path)
