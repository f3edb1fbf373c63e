"""The processes of a worker's model on another machine: they wait out SIGTERM until their leader has ended, and end together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from engine.config import EngineConfig
from engine.split.leader import KEY_VARIABLE, Leader
from engine.tiny_longcat import write_tiny_longcat

pytestmark = pytest.mark.timeout(180)

PORT = 19345
END_TIMEOUT_S = 30.0
KEY = "a word"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_longcat(tmp_path_factory.mktemp("models") / "tiny-longcat")


@pytest.fixture
def leader(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Leader]:
    """Rank 0 of two, alone on its machine."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1, tensor_parallel_size=2)
    made = Leader(model, config.model_copy(update={"local_followers": 0}), None)
    yield made
    made.close()


def start(model: Path, folder: Path, address: tuple[str, int]) -> subprocess.Popen[str]:
    """The command of a follower's pod."""
    file = folder / "serval.yaml"
    file.write_text(f"model: {model}\nengine: {{tensor_parallel_size: 2}}\ncluster: {{metrics_port: {PORT}}}\n")
    words = ["--role=decode", "--name=pod-0-1", f"--config={file}", "--set=engine.local_followers=0", "--host=1"]
    command = [sys.executable, "-m", "serving.followers", *words, f"--leader={address[0]}:{address[1]}"]
    return subprocess.Popen(command, env=os.environ | {KEY_VARIABLE: KEY}, stderr=subprocess.PIPE, text=True)


def health() -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{PORT + 2}/health", trust_env=False)


def test_they_wait_out_a_request_to_end_until_their_leader_has(leader: Leader, model: Path, tmp_path: Path) -> None:
    with start(model, tmp_path, leader.address) as pod:
        leader.join(torch.device("cpu"))
        (follower,) = [one for one in psutil.Process(pod.pid).children() if "engine.split.follower" in one.cmdline()]
        assert (health().status_code, health().text) == (200, "ok\n")
        pod.send_signal(signal.SIGTERM)
        leader.wait_ready()  # it goes on loading, and says so when it is done
        assert leader.failure is None
        assert follower.is_running()
        leader.close()
        assert pod.wait(END_TIMEOUT_S) == 0
        psutil.wait_procs([follower], END_TIMEOUT_S)
        assert not follower.is_running()


def test_a_leader_that_ends_unasked_ends_them_and_the_pod_starts_again(leader: Leader, model: Path, tmp_path: Path) -> None:
    with start(model, tmp_path, leader.address) as pod:
        leader.join(torch.device("cpu"))
        leader.close()
        assert pod.wait(END_TIMEOUT_S) == 1


def test_without_a_leader_they_end_when_asked(model: Path, tmp_path: Path) -> None:
    with start(model, tmp_path, ("127.0.0.1", 9)) as pod:
        deadline = time.monotonic() + END_TIMEOUT_S
        while not psutil.Process(pod.pid).children():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(END_TIMEOUT_S) == 0
