"""One process of the matrix's cluster, with the arguments that a container gives it."""

import contextlib
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from matrix_nursery import Nursery, Order
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

    def order(self, config: Path, log: Path, parent: int) -> Order:
        arguments = ["--role", self.role, "--index", str(self.index), "--name", self.name]
        arguments += ["--config", str(config), "--parent", str(parent)]
        for router in self.routers:
            arguments += ["--router", router]
        for setting in self.settings:
            arguments += ["--set", setting]
        return Order(arguments, str(log), self.place.namespace)


@dataclass(eq=False)
class Process:
    """Dies with the nursery. `ready` is what it said once it served."""

    post: Post
    pid: int
    log: Path
    started_at: float = field(default_factory=time.monotonic)
    ready: Ready | None = None

    def __post_init__(self) -> None:
        self._seen = psutil.Process(self.pid)

    @classmethod
    def start(cls, nursery: Nursery, post: Post, config: Path, log: Path) -> "Process":
        log.touch()
        return cls(post, nursery.start(post.order(config, log, nursery.pid)), log)

    @property
    def name(self) -> str:
        return self.post.name

    @property
    def is_running(self) -> bool:
        return self._seen.is_running()

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP, as the kernel sees it."""
        return self.is_running and self._seen.status() == psutil.STATUS_STOPPED

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
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.send_signal(number)

    def end(self) -> None:
        """At once, whatever state it is in."""
        self.signal(signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.wait(START_TIMEOUT_S)

    def log_end(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
