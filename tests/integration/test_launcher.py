"""`serval up` with real processes and a tiny model: it starts, announces, restarts, drains, and leaves nothing behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from engine.tiny import write_tiny_llama

pytestmark = pytest.mark.cluster

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 40


class Cluster:
    """A launcher process and what it printed."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "serving.cli", "up", "--kv-memory", "4MiB", "--dtype", "float32", *flags]
        ports = ["--http-port", "0", "--grpc-port", "0", "--link-port", "0", "--metrics-port", "0"]
        self.process = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.members: list[psutil.Process] = []
        self.text = ""

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if line.strip().startswith("stop"):
                break
        assert "ready in" in self.text, self.process.stderr and self.process.stderr.read()
        self.members = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def url(self) -> str:
        found = re.search(r"HTTP +(http://\S+)/v1", self.text)
        assert found
        return found[1]

    def workers(self) -> dict[str, dict[str, object]]:
        return {worker["name"]: worker for worker in httpx.get(f"{self.url}/workers", trust_env=False).json()}

    def answer(self) -> str:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
        response = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=30, trust_env=False)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def open_long_answer(self) -> Iterator[str]:
        """The lines of a stream that goes on for long; the first has come."""
        body = {"model": "tiny", "prompt": "x" * 40, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        client = httpx.Client(timeout=30, trust_env=False)
        response = client.send(client.build_request("POST", f"{self.url}/v1/completions", json=body), stream=True)
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)
        return lines

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> tuple[int, str]:
        """Exit status and stderr; nothing of the cluster may live on."""
        _, errors = self.process.communicate(timeout=STOP_TIMEOUT_S)
        _, alive = psutil.wait_procs(self.members, timeout=5)
        assert alive == []
        return self.process.returncode, errors


def until(condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start(model: Path) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def begin(*flags: str) -> Cluster:
        clusters.append(Cluster("--model", str(model), *flags))
        return clusters[-1]

    yield begin
    for cluster in clusters:
        if cluster.process.poll() is None:
            cluster.process.kill()
            cluster.process.wait()


def test_it_serves_survives_a_killed_worker_and_stops_clean(start: Callable[..., Cluster]) -> None:
    cluster = start("--prefill", "2")
    cluster.wait_ready()
    before = cluster.workers()
    assert set(before) == {"prefill-0", "prefill-1", "decode-0"}
    answer = cluster.answer()
    metrics = re.findall(r"(http://\S+/metrics) \((\S+)\)", cluster.text)
    assert {name for _, name in metrics} == {"router", *before}
    for address, _ in metrics:
        assert "serval_" in httpx.get(address, trust_env=False).text

    os.kill(int(str(before["decode-0"]["pid"])), signal.SIGKILL)
    until(lambda: cluster.workers().get("decode-0", {}).get("incarnation") not in (None, before["decode-0"]["incarnation"]))
    assert cluster.answer() == answer

    cluster.members = psutil.Process(cluster.process.pid).children(recursive=True)
    cluster.interrupt()
    status, errors = cluster.finish()
    assert status == 0
    assert "decode-0 was killed by SIGKILL; starting it again in 0.5 s" in errors
    for port in {int(address.rsplit(":", 1)[1].split("/")[0]) for address, _ in metrics}:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_killed_router_comes_back_where_it_was(start: Callable[..., Cluster]) -> None:
    cluster = start()
    cluster.wait_ready()
    router = next(one for one in cluster.members if "router" in one.cmdline()[one.cmdline().index("--role") + 1])
    answer = cluster.answer()
    router.kill()

    def is_back() -> bool:
        try:
            return set(cluster.workers()) == {"prefill-0", "decode-0"}
        except httpx.HTTPError:
            return False

    router.wait(5)
    until(is_back)
    assert cluster.answer() == answer
    cluster.interrupt()
    assert cluster.finish()[0] == 0


def test_the_first_interrupt_lets_an_open_answer_finish_and_the_second_does_not(start: Callable[..., Cluster]) -> None:
    cluster = start()
    cluster.wait_ready()
    lines = cluster.open_long_answer()
    cluster.interrupt()
    for _ in range(20):  # it still streams
        assert next(lines) is not None
    asked = time.monotonic()
    cluster.interrupt()
    status, _ = cluster.finish()
    assert time.monotonic() - asked < 5
    assert status == 130


def test_processes_die_with_their_launcher(start: Callable[..., Cluster]) -> None:
    cluster = start()
    cluster.wait_ready()
    cluster.process.kill()
    cluster.process.wait()
    _, alive = psutil.wait_procs(cluster.members, timeout=5)
    assert alive == []


def test_stopping_while_it_starts(start: Callable[..., Cluster]) -> None:
    cluster = start()
    until(lambda: len(psutil.Process(cluster.process.pid).children()) == 3)
    cluster.members = psutil.Process(cluster.process.pid).children()
    cluster.process.terminate()
    assert cluster.finish()[0] == 0


def test_a_taken_port_is_one_line(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "serving.cli",
            "up",
            "--model",
            str(model),
            "--http-port",
            port,
            "--grpc-port",
            "0",
            "--link-port",
            "0",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr == f"serval: error: router.http_port: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_model_that_cannot_be_served_is_said_in_the_last_line_and_stops_everything(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OddForCausalLM"], "model_type": "odd"}))
    cluster = Cluster("--model", str(folder))
    _, errors = cluster.process.communicate(timeout=START_TIMEOUT_S)
    assert cluster.process.returncode in (1, 2)
    assert errors.splitlines()[-1].startswith("serval: error: ")
    assert "odd" in errors.splitlines()[-1].lower()
