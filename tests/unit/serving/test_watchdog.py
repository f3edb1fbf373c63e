"""A process that does not answer, or says that it cannot go on, is found; one that is late is not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from serving import watchdog
from serving.watchdog import until_silent


class Process:
    """Answers as it is told: a status, or not at all."""

    def __init__(self) -> None:
        self.status: str | None = "200 OK"
        self.asked = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health"
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if self.status is None:
                await asyncio.sleep(60)
            writer.write(f"HTTP/1.1 {self.status}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsick".encode())
            await writer.drain()
        writer.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_PERIOD_S", 0.02)
    monkeypatch.setattr(watchdog, "ANSWER_TIMEOUT_S", 0.1)


@pytest.mark.parametrize(("status", "says"), [(None, "ReadTimeout"), ("503 Service Unavailable", "sick")])
async def test_silence_and_a_bad_answer_count_alike(status: str | None, says: str) -> None:
    process = Process()
    async with process.listening() as url:
        waiting = asyncio.create_task(until_silent(url, 0.4))
        async with asyncio.timeout(10):
            while process.asked < 20:
                assert not waiting.done(), "it answers well"
                await asyncio.sleep(0.01)
        process.status = status
        assert says in await asyncio.wait_for(waiting, 10)


async def test_one_good_answer_begins_anew() -> None:
    process = Process()
    async with process.listening() as url:
        waiting = asyncio.create_task(until_silent(url, 1.0))
        for _ in range(8):
            process.status = "503 Service Unavailable"
            await asyncio.sleep(0.15)
            process.status, asked = "200 OK", process.asked
            async with asyncio.timeout(10):
                while process.asked < asked + 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()


async def test_nobody_there_is_silence() -> None:
    async with Process().listening() as url:
        pass
    assert "ConnectError" in await asyncio.wait_for(until_silent(url, 0.1), 10)
