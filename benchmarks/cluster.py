"""A cluster of one router, one prefill and one decode worker, started for a benchmark.

The processes are those that `serval up` starts, each where the benchmark wants it.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx
import yaml

from benchmarks.errors import NotMeasured
from benchmarks.slow_link import Namespace

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
CONFIG_TIMEOUT_S = 60.0
LOG_LINES_SHOWN = 15


class ClusterError(NotMeasured):
    """The cluster did not come up; the message has the end of the log of the process that failed."""


@dataclass(frozen=True)
class Place:
    """Where a process runs, and by which UCX network device its KV leaves or comes."""

    address: str = "127.0.0.1"
    device: str = "lo"
    transports: str | None = None
    """UCX transports; None: as the settings have it."""
    namespace: Namespace | None = None

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return self.namespace.entered() if self.namespace else contextlib.nullcontext()


def read_settings(model: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The full settings as `serval config` resolves them: defaults, the model's folder, `overrides` (NAME=VALUE).

    Raises ClusterError with the command's own words.
    """
    command = [sys.executable, "-m", "serving.cli", "config", *(["--model", str(model)] if model else [])]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONFIG_TIMEOUT_S, check=False)
    if done.returncode:
        raise ClusterError(done.stderr.strip() or f"`serval config` exited with status {done.returncode}")
    settings: dict[str, Any] = yaml.safe_load(done.stdout)
    if not Path(settings["model"]).is_dir():
        raise ClusterError(
            f"{settings['model']} is not there yet: `serval up` makes it on its first start, or pass --model DIR"
        )
    return settings


def vocabulary_size(settings: Mapping[str, Any]) -> int:
    """Of the model that `settings` names."""
    return int(json.loads((Path(settings["model"]) / "config.json").read_text())["vocab_size"])


def settings_at(settings: Mapping[str, Any], place: Place, router: Place) -> dict[str, Any]:
    """`settings` for one process: it listens where it runs, on any free port, and sends KV by its own device."""
    changed: dict[str, dict[str, Any]] = {
        "cluster": {"host": place.address, "metrics_port": 0},
        "router": {"host": router.address, "http_port": 0, "grpc_port": 0, "link_port": 0},
        "transfer": {"net_device": place.device},
    }
    if place.transports is not None:
        changed["transfer"]["transports"] = place.transports
    return {**settings, **{name: {**settings[name], **change} for name, change in changed.items()}}


@dataclass
class Process:
    """One process of ours. Its reports come on a pipe, its log goes to a file."""

    name: str
    log: Path
    popen: "subprocess.Popen[bytes]"
    reports: "queue.Queue[dict[str, Any]]" = field(default_factory=queue.Queue)

    def wait_ready(self, deadline_s: float) -> dict[str, str]:
        """Its addresses (grpc, metrics, a router's http and link) once it serves. Raises ClusterError."""
        while True:
            try:
                report = self.reports.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise ClusterError(f"{self.name} was not ready in time\n{self.log_end()}") from None
            if "ready" in report:
                return dict(report["ready"])
            if "error" in report:
                raise ClusterError(f"{self.name}: {report['error']}\n{self.log_end()}")

    def log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])


class Cluster:
    """Up between `with` and its end. `router` is also where its clients have to be."""

    def __init__(self, name: str, settings: Mapping[str, Any], router: Place, prefill: Place, decode: Place) -> None:
        self.name = name
        self.model: str = settings["router"]["model"]
        self.url = ""
        self.workers: tuple[str, ...] = ()
        """host:port of the workers' /metrics."""
        self.router = router
        self._settings = settings
        self._places = {"router": router, "prefill": prefill, "decode": decode}
        self._processes: list[Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix=f"serval-bench-{name}-")

    @property
    def worker_ids(self) -> tuple[int, ...]:
        """Process ids of the workers, all but the router, once it is up."""
        return tuple(process.popen.pid for process in self._processes[1:])

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        end(self._processes)
        self._folder.cleanup()

    def _start(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        router = self._launch("router", []).wait_ready(deadline_s)
        self.url = f"http://{router['http']}"
        workers = [self._launch(role, ["--router", router["link"]]) for role in ("prefill", "decode")]
        self.workers = tuple(worker.wait_ready(deadline_s)["metrics"] for worker in workers)
        with self.router.entered():
            self._wait_joined(deadline_s)

    def _launch(self, role: str, arguments: list[str]) -> Process:
        settings = settings_at(self._settings, self._places[role], self.router)
        process = launch(f"{self.name} {role}", role, arguments, settings, Path(self._folder.name), self._places[role])
        self._processes.append(process)
        return process

    def _wait_joined(self, deadline_s: float) -> None:
        """Until the router says that it has a worker of either kind."""
        with httpx.Client(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline_s:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/ready").is_success:
                        return
                time.sleep(0.1)
        raise ClusterError(f"{self.name}: the workers did not join the router in time")


def launch(name: str, role: str, arguments: Sequence[str], settings: Mapping[str, Any], folder: Path, place: Place) -> Process:
    """Starts one process of Serval with exactly these settings; its configuration and log lie in `folder`. It ends with us."""
    config = folder / f"{role}.json"
    config.write_text(json.dumps(settings))
    log = config.with_suffix(".log")
    read_end, write_end = os.pipe()
    command = place.namespace.command_prefix if place.namespace else []
    command += [sys.executable, "-m", "serving.process", "--role", role, *arguments]
    command += ["--config", str(config), "--status-fd", str(write_end), "--parent", str(os.getpid())]
    with log.open("wb") as log_stream:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_stream,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            env=environment(settings["engine"]["threads"]),
            start_new_session=True,  # Ctrl-C is for the benchmark, which stops its processes by itself
        )
    os.close(write_end)
    process = Process(name, log, popen)
    threading.Thread(target=_read_reports, args=(os.fdopen(read_end), process), daemon=True).start()
    return process


def end(processes: Sequence[Process]) -> None:
    """Asks them all to end, and kills those that do not in time."""
    for process in processes:
        process.popen.terminate()
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.popen.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()


def environment(threads: int | None) -> dict[str, str]:
    """What numeric libraries read when they are loaded; the same as under `serval up`. None: a thread per core."""
    number = str(threads or os.cpu_count() or 1)
    return os.environ | {
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "TOKENIZERS_PARALLELISM": "false",
        "NIXL_LOG_LEVEL": "ERROR",
        "PYTHONUNBUFFERED": "1",
    }


def _read_reports(stream: IO[str], process: Process) -> None:
    """Passes on what the process reports, and in the end that it is gone."""
    with stream:
        for line in stream:
            process.reports.put(json.loads(line))
    process.reports.put({"error": f"ended (status {process.popen.wait()})"})
