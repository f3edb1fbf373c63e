"""A pod's preStop: the command asks the process at its door, and returns when that has drained."""

import asyncio
import sys
from pathlib import Path

from serving.pod_drain import answer_at


async def run(door: Path, *words: str) -> str:
    command = [sys.executable, "-m", "serving.pod_drain", "--door", str(door), *words]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, output = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return output.decode().strip()


async def test_the_command_returns_when_the_process_has_drained(tmp_path: Path) -> None:
    door, asked, finished = tmp_path / "door.sock", asyncio.Event(), asyncio.Event()

    async def drain() -> None:
        asked.set()
        await finished.wait()

    async with await answer_at(door, drain):
        assert door.stat().st_mode & 0o777 == 0o600
        waiting = asyncio.create_task(run(door))
        await asyncio.wait_for(asked.wait(), 60)
        assert not waiting.done()
        finished.set()
        assert await waiting == "drained"


async def test_a_process_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    assert await run(tmp_path / "nothing.sock") == "no process to drain"
    left = tmp_path / "left.sock"

    async def nothing() -> None:
        return

    server = await answer_at(left, nothing)
    server.close()
    await server.wait_closed()
    assert await run(left) == "no process to drain"
    async with await answer_at(left, nothing):  # its successor takes the door over
        assert await run(left) == "drained"
