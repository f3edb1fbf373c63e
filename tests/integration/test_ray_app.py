"""`serval up --ray` with real Ray, real replicas and a tiny model."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from engine.tiny import write_tiny_llama
from protocol.errors import ConfigError
from serving.config import load
from tests.integration.test_launcher import until

pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(300)]

DECODE_THREADS = 3
"""Other than what a machine has, and than prefill's: one, as nothing is said of it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["RayCluster"]:
    """One Ray for every test of this file: it takes half a minute to come up. The last test stops it."""
    running = RayCluster(write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny"), tmp_path_factory.mktemp("t"))
    yield running
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        try:
            running.process.wait(60)
        except subprocess.TimeoutExpired:
            running.process.kill()


class RayCluster:
    def __init__(self, model: Path, scratch: Path) -> None:
        # Ray's sockets lie in its folder, and the path of a socket is short.
        self.scratch = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))
        self.log = scratch / "log"
        command = [sys.executable, "-m", "serving.cli", "up", "--ray", "--model", str(model), "--kv-memory", "4MiB"]
        flags = ["--dtype", "float32", "--http-port", "0", "--grpc-port", "0", "--link-port", "0"]
        flags += ["--set", f"decode_engine.threads={DECODE_THREADS}"]
        with self.log.open("w") as log:
            environment = os.environ | {"TMPDIR": str(self.scratch)}
            self.process = subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT, env=environment)
        until(lambda: "stop  " in self.text or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.text
        found = re.search(r"HTTP +(http://\S+)/v1", self.text)
        assert found, self.text
        self.url = found[1]

    @property
    def text(self) -> str:
        return self.log.read_text()

    def workers(self) -> dict[str, dict[str, object]]:
        try:
            return {worker["name"]: worker for worker in httpx.get(f"{self.url}/workers", trust_env=False).json()}
        except httpx.HTTPError:
            return {}

    def answer(self) -> str:
        body = {"model": "tiny", "prompt": "hello " * 20, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        response = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60, trust_env=False)
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["completion_tokens"] == 16
        return str(response.json()["choices"][0]["text"])

    def metric(self, worker: str, name: str) -> float:
        text = httpx.get(f"http://{self.workers()[worker]['metrics_address']}/metrics", trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_it_answers_through_both_pools(cluster: RayCluster) -> None:
    assert set(cluster.workers()) == {"prefill-0", "decode-0"}
    cluster.answer()
    assert cluster.metric("decode-0", "serval_kv_transfer_bytes_total") > 0


def test_a_replica_finds_the_environment_of_its_own_role(cluster: RayCluster) -> None:
    """Libraries read it when they are loaded, long before the replica knows what it is."""
    found = {name: psutil.Process(int(str(one["pid"]))).environ() for name, one in cluster.workers().items()}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert {name: own[variable] for name, own in found.items()} == {"prefill-0": "1", "decode-0": str(DECODE_THREADS)}


@pytest.mark.parametrize("name", ["decode-0", "prefill-0"])
def test_a_killed_replica_is_replaced_and_dials_again(cluster: RayCluster, name: str) -> None:
    answer = cluster.answer()
    before = cluster.workers()[name]
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    until(lambda: cluster.workers().get(name, {}).get("incarnation") not in (None, before["incarnation"]), 120)
    assert cluster.answer() == answer


def test_a_killed_router_comes_back_where_it_was(cluster: RayCluster) -> None:
    answer = cluster.answer()
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    router = next(child for child in children if "Router" in " ".join(child.cmdline()))
    router.kill()
    router.wait(10)
    until(lambda: set(cluster.workers()) == {"prefill-0", "decode-0"}, 120)
    assert cluster.answer() == answer


def test_interrupt_leaves_nothing_behind(cluster: RayCluster) -> None:
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    assert children
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.process.wait(90) == 0, cluster.text
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert [path.name for path in cluster.scratch.iterdir()] == []
    cluster.scratch.rmdir()


def test_ports_are_settled_before_anything_starts() -> None:
    from serving.ray_app import settle_ports

    config = settle_ports(load(None, {"router.http_port": 0, "router.grpc_port": 0, "router.link_port": 0}))
    assert config.router.http_port > 0
    assert config.router.grpc_port > 0
    assert config.router.link_port > 0
    assert config.cluster.metrics_port == 0


def test_a_taken_port_is_named() -> None:
    from serving.ray_app import settle_ports

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConfigError, match=r"^router\.grpc_port: "):
        settle_ports(load(None, {"router.http_port": 0, "router.grpc_port": server.getsockname()[1]}))


def test_a_ray_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    """Here for the length of its sockets' paths, of which it tells when it has made its folder."""
    scratch = tmp_path / ("x" * 90)
    scratch.mkdir()
    model = write_tiny_llama(tmp_path / "tiny")
    command = [sys.executable, "-m", "serving.cli", "up", "--ray", "--model", str(model)]
    ports = ["--http-port", "0", "--grpc-port", "0", "--link-port", "0"]
    environment = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("serval: error: Ray did not start: ")
    assert "Traceback" not in done.stdout + done.stderr
    assert list(scratch.iterdir()) == []
