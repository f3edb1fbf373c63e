"""One child process from start to exit, as the launcher sees it."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from protocol.errors import Unavailable
from serving.config import ServalConfig
from serving.roles import Member, Role
from serving.status import Failed, ProgressReport, Ready, parse
from worker.spec import Progress

logger = logging.getLogger(__name__)

Log = Callable[[str], None]
"""Takes one line that a child wrote."""


class StartFailed(Unavailable):
    """The process ended, or said that it cannot start, before it was ready."""


class Child:
    """One process. `start` once; then `ready` and `exited` resolve, in any order, exactly once each.

    `ready` raises StartFailed when the process ends first. `exited` is the exit status (negative: the signal's number).
    """

    def __init__(self, member: Member, on_progress: Progress, on_line: Log) -> None:
        self.member = member
        self._on_progress = on_progress
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: str | None = None
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        # Nobody may be waiting for `ready` when the process ends during a stop.
        self.ready.add_done_callback(lambda future: future.cancelled() or future.exception())

    def __repr__(self) -> str:
        state = "exited" if self.exited.done() else "ready" if self.ready.done() else "starting"
        return f"Child({self.member.name}, pid {self.pid}, {state})"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, config: ServalConfig, routers: Sequence[str]) -> None:
        config_read, config_write = os.pipe()
        status_read, status_write = os.pipe()
        command = [sys.executable, "-m", "serving.process", "--role", self.member.role, "--index", str(self.member.index)]
        command += [part for router in routers for part in ("--router", router)]
        command += ["--config-fd", str(config_read), "--status-fd", str(status_write), "--parent", str(os.getpid())]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=(config_read, status_write),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment(config, self.member.role),
                # Ctrl-C in the terminal is for the launcher alone: it stops the children in order.
                start_new_session=True,
            )
        finally:
            os.close(config_read)
            os.close(status_write)
        with os.fdopen(config_write, "w") as stream:
            stream.write(config.model_dump_json())
        reports = await _open_reader(status_read)
        assert self._process.stdout is not None
        self._tasks = [
            asyncio.create_task(self._read_reports(reports), name=f"{self.member.name}-reports"),
            asyncio.create_task(self._read_lines(self._process.stdout), name=f"{self.member.name}-lines"),
        ]
        self._tasks.append(asyncio.create_task(self._wait(), name=f"{self.member.name}-wait"))

    def terminate(self) -> None:
        """Asks the process to drain and stop; asked again, it skips the drain."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def describe_exit(self) -> str:
        """In words: `was killed by SIGSEGV`, `exited with status 1 (why)`."""
        status = self.exited.result()
        why = f" ({self._failure})" if self._failure else ""
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}{why}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _wait(self) -> None:
        assert self._process is not None
        status = await self._process.wait()
        # What the process said last is still in the pipes. A grandchild could hold them open, so not for ever.
        await asyncio.wait(self._tasks[:2], timeout=1.0)
        for task in self._tasks[:2]:
            task.cancel()
        self.exited.set_result(status)
        if not self.ready.done():
            self.ready.set_exception(StartFailed(self._failure or f"{self.member.name} {self.describe_exit()} while starting"))

    async def _read_reports(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            match parse(line):
                case ProgressReport(what, done, total):
                    self._on_progress(what, done, total)
                case Ready() as ready if not self.ready.done():
                    self.ready.set_result(ready)
                case Failed(message):
                    self._failure = message

    async def _read_lines(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than the reader's limit; the rest of it follows
                continue
            if not line:
                return
            self._on_line(line.decode(errors="replace").rstrip())


def environment(config: ServalConfig, role: Role | None = None) -> dict[str, str]:
    """The child's environment: ours, and what libraries read only once, when they are loaded. `role`: None where processes of
    all roles have this one environment."""
    own = library_settings(config, role, len(os.sched_getaffinity(0)))
    return os.environ | own | {"NIXL_LOG_LEVEL": os.environ.get("NIXL_LOG_LEVEL", "ERROR")}


def library_settings(config: ServalConfig, role: Role | None, cores: int) -> dict[str, str]:
    """Environment variables that a process of `role` needs before it starts; None: a process of any. `cores`: how many it finds
    where it runs, all of which it takes when engine.threads says none."""
    engine = config.engine_of(role) if role in ("prefill", "decode") else config.engine
    threads = str(engine.threads or cores)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


async def _open_reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    return reader
