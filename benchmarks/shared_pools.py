"""Several routers over the same prefill and decode workers, started for a benchmark: what differs is the router alone."""

import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from benchmarks.cluster import START_TIMEOUT_S, ClusterError, Place, Process, end, launch, settings_at
from benchmarks.scrape import Scraper


class SharedPools:
    """Up between `with` and its end. `urls` are the routers' HTTP addresses by name; `workers` are host:port of the workers'
    /metrics."""

    def __init__(
        self, settings: Mapping[str, Any], routers: Mapping[str, Mapping[str, Any]], prefill: int, decode: int
    ) -> None:
        """`routers`: by name, the settings in which each router differs. `prefill`, `decode`: workers of each kind."""
        self.model: str = settings["router"]["model"]
        self.urls: dict[str, str] = {}
        self.workers: tuple[str, ...] = ()
        self._settings = settings_at(settings, Place(), Place())
        self._routers = routers
        self._roles = [("prefill", index) for index in range(prefill)] + [("decode", index) for index in range(decode)]
        self._processes: list[Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix="serval-bench-pools-")

    def __enter__(self) -> "SharedPools":
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
        dial: list[str] = []
        for name, changes in self._routers.items():
            settings = {**self._settings, "router": {**self._settings["router"], **changes, "name": name}}
            ready = self._launch(name, "router", [], settings).wait_ready(deadline_s)
            self.urls[name] = f"http://{ready['http']}"
            dial += ["--router", ready["link"]]
        started = [
            self._launch(f"{role}-{index}", role, ["--index", str(index), *dial], self._settings) for role, index in self._roles
        ]
        self.workers = tuple(process.wait_ready(deadline_s)["metrics"] for process in started)
        asyncio.run(self._wait_joined(deadline_s))

    def _launch(self, name: str, role: str, arguments: list[str], settings: Mapping[str, Any]) -> Process:
        folder = Path(self._folder.name) / name
        folder.mkdir()
        process = launch(name, role, arguments, settings, folder, Place())
        self._processes.append(process)
        return process

    async def _wait_joined(self, deadline_s: float) -> None:
        """Until every router knows every worker."""
        for name, url in self.urls.items():
            async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as http:
                while len((await Scraper.discover(http)).workers) < len(self._roles):
                    if time.monotonic() > deadline_s:
                        raise ClusterError(f"{name}: the workers did not join it in time")
                    await asyncio.sleep(0.1)
