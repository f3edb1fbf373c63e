"""The routers that are measured, each before mock workers of its own: ours, and smg over gRPC."""

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

import benchmarks
from benchmarks.cluster import Place, environment, launch, settings_at
from benchmarks.router_cost.pipe import Child, ChildFailed

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
INSTALL_SMG = "pip install smg==1.13.0 smg-grpc-proto h2, here or in an environment of its own (then --smg ITS/bin/smg)"


class NotInstalled(Exception):
    """The peer is not there; the message says how to get it."""


class Side(ABC):
    """One router with its mock workers. After `start` there are `url`, `worker`, and `pid`: its processor time counts, and its
    children's."""

    name: str
    url: str
    pid: int
    worker: Child | None = None

    def __init__(self, model: str, folder: Path, workers: int) -> None:
        """`workers`: mock decode workers."""
        self.model = model
        self.folder = folder
        self._workers = str(workers)
        self._scratch = tempfile.TemporaryDirectory(prefix="serval-bench-router-")
        self._popen: subprocess.Popen[bytes] | None = None

    @abstractmethod
    async def start(self) -> None:
        """Returns when a request would be answered. Raises ClusterError, ChildFailed."""

    async def stop(self) -> None:
        """Also after a start that failed."""
        if self.worker is not None:
            await self.worker.stop()
        if self._popen is not None:
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._scratch.cleanup()

    async def _wait_for(self, path: str, log: Path) -> None:
        """Until the router answers it with success."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline_s and self._popen is not None and self._popen.poll() is None:
                try:
                    answer = await client.get(path)
                    if answer.is_success and self.model in (await client.get("/v1/models")).text:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1)
        raise ChildFailed(f"{self.name} was not ready in time\n{_end_of(log)}")


class Serval(Side):
    """The router process as `serval up` starts it, with the settings that `serval config` resolves."""

    name = "serval"

    def __init__(self, settings: Mapping[str, Any], workers: int) -> None:
        super().__init__(settings["router"]["model"], Path(settings["model"]), workers)
        self._settings = settings_at(settings, Place(), Place())

    async def start(self) -> None:
        process = launch("router", "router", [], self._settings, Path(self._scratch.name), Place())
        self._popen = process.popen
        ready = await asyncio.to_thread(process.wait_ready, time.monotonic() + START_TIMEOUT_S)
        self.url, self.pid = f"http://{ready['http']}", process.popen.pid
        arguments = ["--model", self.model, "--folder", str(self.folder), "--workers", self._workers]
        self.worker, _ = await Child.start("benchmarks.router_cost.serval_worker", ["--router", ready["link"], *arguments])
        await self._wait_for("/ready", process.log)


class Smg(Side):
    """smg with vLLM's gRPC protocol: it applies the chat template, tokenises and detokenises, as ours does. Round robin, its
    cheapest policy; all else as it comes."""

    name = "smg"

    def __init__(self, model: str, folder: Path, workers: int, command: Path) -> None:
        super().__init__(model, folder, workers)
        self._command = command

    async def start(self) -> None:
        arguments = ["--model", self.model, "--folder", str(self.folder), "--workers", self._workers]
        root = {"PYTHONPATH": str(Path(benchmarks.__file__).parents[1])}
        python = str(self._command.with_name("python"))
        self.worker, ready = await Child.start("benchmarks.router_cost.smg_worker", arguments, python, root)
        port, metrics_port = free_port(), free_port()
        options = {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--prometheus-host": "127.0.0.1",
            "--prometheus-port": str(metrics_port),
            "--policy": "round_robin",
            "--model-path": str(self.folder),
            "--log-level": "warn",
        }
        log = Path(self._scratch.name) / "smg.log"
        words = ["launch", "--worker-urls", *ready["urls"], *(word for option in options.items() for word in option)]
        self._popen = self._launch(words, log)
        self.url, self.pid = f"http://127.0.0.1:{port}", self._popen.pid
        await self._wait_for("/readiness", log)

    def _launch(self, words: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as stream:
            return subprocess.Popen(
                [str(self._command), *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment(None),
                start_new_session=True,
            )


def find_smg(given: Path | None) -> Path:
    """smg's command: `given`, or beside our interpreter, or on the PATH. Raises NotInstalled."""
    found = given or next(filter(None, map(shutil.which, (str(Path(sys.executable).with_name("smg")), "smg"))), None)
    if found is None or not Path(found).is_file():
        raise NotInstalled(f"smg is not installed: {INSTALL_SMG}")
    probe = [str(Path(found).with_name("python")), "-c", "import h2, smg_grpc_proto"]
    if subprocess.run(probe, capture_output=True, timeout=START_TIMEOUT_S, check=False).returncode:
        raise NotInstalled(f"smg is there, but not what its mock worker needs: {INSTALL_SMG}")
    return Path(found)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
