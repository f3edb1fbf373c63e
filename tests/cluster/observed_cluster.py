"""A cluster, and Debian's Prometheus, which scrapes it and computes the rules."""

import asyncio
import contextlib
import itertools
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from engine.tiny import write_tiny_llama
from k8s.config import SloConfig
from k8s.rules import groups
from serving.ports import any_free_port

START_S = 120.0
SCRAPE = {"scrape_interval": "1s", "evaluation_interval": "1s"}


class Observed:
    """Prometheus finds its targets by the router's own discovery. `settings` are the cluster's."""

    def __init__(self, folder: Path, slo: SloConfig, settings: tuple[str, ...]) -> None:
        self.folder = folder
        self._slo = slo
        self._settings = settings
        self.url, self.prometheus = (f"http://127.0.0.1:{any_free_port('127.0.0.1')}" for _ in range(2))
        self.client = httpx.AsyncClient(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None))
        self.statuses: Counter[int] = Counter()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        model = write_tiny_llama(self.folder / "tiny")
        flags = ["--model", str(model), "--kv-memory", "4MiB", "--dtype", "float32", "--http-port", self.url.rpartition(":")[2]]
        flags += ["--grpc-port", "0", "--link-port", "0", "--metrics-port", "0", "--set", "decode.local_prefill_max_tokens=0"]
        flags += [word for setting in self._settings for word in ("--set", setting)]
        self._run("cluster", sys.executable, "-m", "serving.cli", "up", *flags)
        (self.folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups(self._slo)}))
        targets = {"job_name": "serval", "http_sd_configs": [{"url": f"{self.url}/sd/prometheus", "refresh_interval": "1s"}]}
        settings = {"global": SCRAPE, "rule_files": ["rules.yaml"], "scrape_configs": [targets]}
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        listen = f"--web.listen-address={self.prometheus.removeprefix('http://')}"
        data = f"--storage.tsdb.path={self.folder / 'data'}"
        self._run("prometheus", "prometheus", f"--config.file={self.folder / 'prometheus.yaml'}", data, listen)

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))

    async def get(self, path: str) -> Any:
        """Prometheus' answer; None while it does not answer."""
        try:
            return (await self.client.get(f"{self.prometheus}/api/v1/{path}")).json()["data"]
        except httpx.TransportError:
            return None

    async def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (await self.get("rules"))["groups"] for rule in group["rules"]]

    async def firing(self) -> set[tuple[str, str]]:
        """Alerts by name and, where they have one, burn."""
        alerts = (await self.get("alerts"))["alerts"]
        return {(one["labels"]["alertname"], one["labels"].get("burn", "")) for one in alerts if one["state"] == "firing"}

    async def is_ready(self) -> bool:
        try:
            return (await self.client.get(f"{self.url}/ready")).status_code == 200 and await self.get("rules") is not None
        except httpx.TransportError:
            return False

    async def ask(self, max_tokens: int = 16) -> int:
        """One request; its status."""
        body = {"model": "tiny", "prompt": "hello " * 40, "max_tokens": max_tokens, "ignore_eos": True}
        return (await self.client.post(f"{self.url}/v1/completions", json=body)).status_code

    async def load(self) -> None:
        """One request after the other, for ever; `statuses` is what they got."""
        while True:
            self.statuses[await self.ask()] += 1

    async def stop(self) -> None:
        await self.client.aclose()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)


@contextlib.asynccontextmanager
async def observed_cluster(folder: Path, slo: SloConfig, *settings: str) -> AsyncIterator[Observed]:
    """Under a little load, to the end."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus")
    running = Observed(folder, slo, settings)
    running.start()
    load = None
    try:
        await until(running.is_ready)
        load = asyncio.create_task(running.load())
        yield running
        assert not load.done(), load
    finally:
        if load is not None:
            load.cancel()
        await running.stop()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = START_S) -> None:
    async with asyncio.timeout(timeout_s):
        for pause_s in itertools.repeat(0.3):
            if await condition():
                return
            await asyncio.sleep(pause_s)
