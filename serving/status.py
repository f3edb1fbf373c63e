"""What a child process tells its launcher: one JSON object per line on a pipe.

{"progress": "loading weights", "done": 3, "total": 9}
{"ready": {"grpc": "127.0.0.1:41237", "metrics": "127.0.0.1:9101", "http": null, "link": null}}
{"error": "engine.kv_memory: ..."}
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

PROGRESS_PERIOD_S = 0.05
"""A progress bar needs no more; the last unit of a job is always reported."""


@dataclass(frozen=True)
class ProgressReport:
    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Ready:
    """The process serves. Addresses are host:port as bound; `http` and `link`, which workers dial, only for a router."""

    grpc: str
    metrics: str
    http: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Failed:
    """The process could not start, and why in one line. It exits after this."""

    message: str


Report = ProgressReport | Ready | Failed


class StatusWriter:
    """The child's end. Safe from any thread: a line is shorter than PIPE_BUF, so one write is atomic (pipe(7)).

    A launcher that is gone is no error here: the process ends for another reason.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last_progress = 0.0

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last_progress < PROGRESS_PERIOD_S:
            return
        self._last_progress = now
        self._write({"progress": what, "done": done, "total": total})

    def ready(self, ready: Ready) -> None:
        self._write({"ready": asdict(ready)})

    def failed(self, message: str) -> None:
        self._write({"error": " ".join(message.split())[:2000]})

    def _write(self, report: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(report).encode() + b"\n")


def parse(line: bytes) -> Report:
    """The launcher's end. Raises ValueError for anything else than a report."""
    report = json.loads(line)
    match report:
        case {"progress": str(what), "done": int(done), "total": int(total)}:
            return ProgressReport(what, done, total)
        case {
            "ready": {"grpc": str(grpc), "metrics": str(metrics), "http": str() | None as http, "link": str() | None as link}
        }:
            return Ready(grpc, metrics, http, link)
        case {"error": str(message)}:
            return Failed(message)
    raise ValueError(f"not a status report: {line[:100]!r}")
