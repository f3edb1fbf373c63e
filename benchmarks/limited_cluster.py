"""A real router before a worker that has a worker's limits and no model (benchmarks/limited_worker.py): its speed hardly depends on
what else the machine does."""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cluster import Place, Process, end, launch, settings_at
from benchmarks.router_cost.pipe import Child

START_TIMEOUT_S = 60.0
STEP_MS = 20


class LimitedCluster:
    """The router is up between `with` and its end; the worker from `start_worker` to the end of its stack."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.model: str = settings["router"]["model"]
        self.url = ""
        self.workers: tuple[str, ...] = ()
        self._settings = settings
        self._link = ""
        self._processes: list[Process] = []
        self._folder = tempfile.TemporaryDirectory(prefix=f"serval-bench-{name}-")

    def __enter__(self) -> "LimitedCluster":
        try:
            settings = settings_at(self._settings, Place(), Place())
            router = launch(f"{self.name} router", "router", [], settings, Path(self._folder.name), Place())
            self._processes.append(router)
            ready = router.wait_ready(time.monotonic() + START_TIMEOUT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.url, self._link = f"http://{ready['http']}", ready["link"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        end(self._processes)
        self._folder.cleanup()

    async def start_worker(self, stack: contextlib.AsyncExitStack) -> None:
        """As many answers at a time as the settings allow, a token each per STEP_MS."""
        words = ["--router", self._link, "--model", self.model, "--workers", "1", "--step-ms", str(STEP_MS)]
        words += ["--sequences", str(self._settings["engine"]["max_sequences"])]
        worker, _ = await Child.start("benchmarks.limited_worker", words)
        stack.push_async_callback(worker.stop)
