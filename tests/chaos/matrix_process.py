"""One process of the matrix's cluster, started as a container would start it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from matrix_places import Place

from serving.status import Failed, Ready, parse

START_TIMEOUT_S = 180.0
LOOK_PERIOD_S = 0.02

Role = Literal["router", "prefill", "decode"]


@dataclass(frozen=True)
class Post:
    """A place in the cluster, whoever fills it now. `settings` are `--set` values."""

    name: str
    role: Role
    index: int
    place: Place
    settings: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()

    def command(self, config: Path) -> list[str]:
        command = [*self.place.command, sys.executable, "-m", "serving.process", "--role", self.role]
        command += ["--index", str(self.index), "--name", self.name, "--config", str(config), "--parent", str(os.getpid())]
        for router in self.routers:
            command += ["--router", router]
        for setting in self.settings:
            command += ["--set", setting]
        return command


@dataclass(eq=False)
class Process:
    """Dies with us. `ready` is what it said once it served."""

    post: Post
    popen: "subprocess.Popen[bytes]"
    log: Path
    started_at: float = field(default_factory=time.monotonic)
    ready: Ready | None = None

    @classmethod
    def start(cls, post: Post, config: Path, log: Path) -> "Process":
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("wb") as stream:
            popen = subprocess.Popen(
                post.command(config),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        return cls(post, popen, log)

    @property
    def name(self) -> str:
        return self.post.name

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP, as the kernel sees it."""
        return self.is_running and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def look(self) -> bool:
        """Whether it is ready by now. Raises AssertionError when it never will be."""
        if self.ready is None:
            for line in self.log.read_bytes().splitlines():
                if line.startswith(b'{"'):
                    report = parse(line)
                    assert not isinstance(report, Failed), f"{self.name} did not start: {report.message}"
                    if isinstance(report, Ready):
                        self.ready = report
            assert self.ready or self.is_running, f"{self.name} ended while starting\n{self.log_end()}"
            assert self.ready or time.monotonic() - self.started_at < START_TIMEOUT_S, f"{self.name} did not start in time"
        return self.ready is not None

    @property
    def metrics(self) -> str:
        assert self.ready is not None
        return self.ready.metrics

    def signal(self, number: signal.Signals) -> None:
        if self.is_running:
            self.popen.send_signal(number)

    def end(self) -> None:
        """At once, whatever state it is in."""
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def log_end(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
