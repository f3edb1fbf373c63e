"""A child process that is asked by lines of JSON on its stdin and answers each on its stdout. It ends with its stdin."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from benchmarks.errors import NotMeasured

Json = dict[str, Any]

LINE_BYTES = 1 << 28
START_TIMEOUT_S = 30.0
ENV = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GRPC_VERBOSITY": "ERROR"}


class ChildFailed(NotMeasured):
    """The child ended, said nothing in time, or said that it failed."""


class Child:
    """The parent's side."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    @classmethod
    async def start(
        cls, module: str, arguments: Sequence[str], python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> tuple["Child", Json]:
        """The child and what it says first. Raises ChildFailed."""
        process = await asyncio.create_subprocess_exec(
            python,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            env={**os.environ, **ENV, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for the parent, whose end ends the child
        )
        child = cls(module, process)
        try:
            return child, await child._answer(START_TIMEOUT_S)
        except BaseException:
            await child.stop()
            raise

    async def ask(self, question: Json, timeout_s: float) -> Json:
        """Raises ChildFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return await self._answer(timeout_s)

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()  # it holds nothing that has to be put away
        await self._process.wait()

    async def _answer(self, timeout_s: float) -> Json:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
            answer: Json = json.loads(line)
        except TimeoutError:
            raise ChildFailed(f"{self._name}: no answer within {timeout_s:g} s") from None
        except ValueError:
            raise ChildFailed(f"{self._name}: ended or answered nonsense") from None
        if error := answer.get("error"):
            raise ChildFailed(f"{self._name}: {error}")
        return answer


async def serve(ready: Json, answer: Callable[[Json], Awaitable[Json]]) -> None:
    """The child's side: says `ready`, then answers until its stdin ends."""
    lines = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    say(ready)
    while line := await lines.readline():
        say(await answer(json.loads(line)))


def say(content: Json) -> None:
    print(json.dumps(content), flush=True)
