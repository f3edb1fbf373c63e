"""What a worker process answers to probes through its life. The worker itself does as the test says."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.tiny import write_tiny_llama
from protocol.errors import Unavailable
from serving import roles
from serving.config import load
from serving.roles import Member, build, metrics_port, worker_port
from worker.spec import WorkerSpec, silent


class Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.why_not_healthy: str | None = None
        self.has_joined = False

    async def start(self) -> str:
        return f"{self.spec.host}:{self.spec.port}"

    async def drain(self, timeout_s: float) -> None: ...

    async def stop(self, timeout_s: float) -> None: ...


def probe(address: str, path: str) -> tuple[int, str]:
    response = httpx.get(f"http://{address}{path}", trust_env=False)
    return response.status_code, response.text.strip()


async def test_from_start_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Worker] = []

    def make(member: Member, spec: WorkerSpec, *rest: Any) -> Worker:
        made.append(Worker(spec))
        return made[-1]

    monkeypatch.setattr(roles, "_worker", make)
    folder = write_tiny_llama(tmp_path / "tiny")
    config = load(None, {"model": folder, "cluster.metrics_port": 0})
    server: Any = build(Member("decode", 0, "pod-7"), config, ["dns:routers:8002"], silent)
    try:
        at = server._endpoint.address
        assert probe(at, "/health") == (503, "the worker is starting")
        await server.start()
        assert made[0].spec.routers == ("dns:routers:8002",)
        assert made[0].spec.name == "pod-7"
        assert probe(at, "/health") == (200, "ok")
        assert probe(at, "/ready") == (503, "the worker has joined no router")
        made[0].has_joined = True
        assert probe(at, "/ready") == (200, "ok")

        server._seen_healthy -= roles.STANDSTILL_S + 1  # as if the loop hung: nobody looks
        status, reason = probe(at, "/health")
        assert status == 503
        assert reason.startswith("not seen healthy for ")
        await server.check_health()
        assert probe(at, "/health") == (200, "ok")
        made[0].why_not_healthy = "the engine has work and makes no step"
        with pytest.raises(Unavailable, match="makes no step"):
            await server.check_health()

        await server.drain(1.0)
        server._seen_healthy -= roles.STANDSTILL_S + 1
        assert probe(at, "/ready") == (503, "the worker is draining")
        assert probe(at, "/health") == (200, "ok")
    finally:
        await server.stop(1.0)


def test_ports_of_workers_do_not_meet(tmp_path: Path) -> None:
    settings = {"cluster.prefill": 2, "cluster.decode": 2, "cluster.worker_port": 8010, "cluster.metrics_port": 9100}
    config = load(None, {"model": write_tiny_llama(tmp_path / "tiny"), **settings})
    workers = [Member(role, index) for role in ("prefill", "decode") for index in range(2)]
    assert [worker_port(config, worker) for worker in workers] == [8010, 8011, 8012, 8013]
    assert [metrics_port(config, worker) for worker in workers] == [9101, 9102, 9103, 9104]
    free = config.model_copy(update={"cluster": config.cluster.model_copy(update={"worker_port": 0})})
    assert worker_port(free, workers[3]) == 0
