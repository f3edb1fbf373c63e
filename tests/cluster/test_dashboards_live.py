"""Every query of every dashboard, and every rule, on a real Prometheus that scrapes a real cluster under load."""

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from engine.tiny import write_tiny_llama
from k8s.config import SloConfig
from k8s.dashboards import dashboards
from k8s.rules import groups
from serving.ports import any_free_port

CHECKER = Path(__file__).parents[3] / "shared" / "tools" / "check_dashboard.py"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
START_S = 120.0
SLO = SloConfig()
SCRAPE = {"scrape_interval": "1s", "evaluation_interval": "1s"}


class Observed:
    """A cluster, and the Prometheus that finds its targets by the router's own discovery."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url, self.prometheus = (f"http://127.0.0.1:{any_free_port('127.0.0.1')}" for _ in range(2))
        self.client = httpx.AsyncClient(trust_env=False, timeout=30)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        model = write_tiny_llama(self.folder / "tiny")
        flags = ["--model", str(model), "--kv-memory", "4MiB", "--dtype", "float32", "--http-port", self.url.rpartition(":")[2]]
        flags += ["--grpc-port", "0", "--link-port", "0", "--metrics-port", "0", "--set", "decode.local_prefill_max_tokens=0"]
        self._run("cluster", sys.executable, "-m", "serving.cli", "up", *flags)
        (self.folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups(SLO)}))
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

    async def is_ready(self) -> bool:
        try:
            return (await self.client.get(f"{self.url}/ready")).status_code == 200 and await self.get("rules") is not None
        except httpx.TransportError:
            return False

    async def load(self) -> None:
        """One request after the other, for ever."""
        body = {"model": "tiny", "prompt": "hello " * 40, "max_tokens": 16, "ignore_eos": True}
        while True:
            (await self.client.post(f"{self.url}/v1/completions", json=body)).raise_for_status()

    async def stop(self) -> None:
        await self.client.aclose()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)


@pytest.fixture
async def observed(tmp_path: Path) -> AsyncIterator[Observed]:
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus")
    running = Observed(tmp_path)
    running.start()
    load = None
    try:
        await until(running.is_ready)
        load = asyncio.create_task(running.load())
        await until(lambda: shows_speed(running))
        yield running
        assert not load.done(), load
    finally:
        if load is not None:
            load.cancel()
        await running.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(START_S):
        for pause_s in itertools.repeat(0.3):
            if await condition():
                return
            await asyncio.sleep(pause_s)


async def shows_speed(observed: Observed) -> bool:
    """The last of what every dashboard asks for: seconds of several scrapes of every target."""
    found = await observed.get("query?query=rate(serval_kv_transfer_bytes_total[30s])>0")
    rules = await observed.get("query?query=serval:busy:share")
    return len(found["result"]) == 2 and len(rules["result"]) == 2


async def test_every_panel_has_data_and_every_rule_is_computed(observed: Observed) -> None:
    expected = sum(len(group["rules"]) for group in groups(SLO))

    async def rules() -> list[dict[str, Any]]:
        return [rule for group in (await observed.get("rules"))["groups"] for rule in group["rules"]]

    async def are_computed() -> bool:
        return not any(rule["health"] == "unknown" for rule in await rules())

    await until(are_computed)
    found = await rules()
    assert len(found) == expected
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []

    pytest.importorskip("grafana_foundation_sdk", reason="the dashboards' checker needs it")
    if not CHECKER.is_file():
        pytest.skip("the dashboards' checker is not beside the repository")
    for board in dashboards(SLO):
        file = observed.folder / f"{board.uid}.json"
        file.write_text(json.dumps(board.to_json()))
        check = await asyncio.create_subprocess_exec(
            sys.executable, str(CHECKER), str(file), observed.prometheus, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(check.communicate(), 60)
        assert check.returncode == 0, output.decode()
        assert b" 0 findings" in output
