"""What started stays no longer than the command that started it."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.tiny import write_tiny_llama
from protocol.errors import ConfigError
from serving import followers
from serving.config import load
from serving.roles import Member

HERE = "127.0.0.1"


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.timeout(30)
def test_a_taken_port_ends_what_was_started(own_signals: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: object) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    monkeypatch.setattr(followers, "_start", start)
    with socket.create_server((HERE, 0)) as taken:
        base = taken.getsockname()[1] - 1  # what a prefill worker's is counted from
        settings = {"model": write_tiny_llama(tmp_path / "tiny"), "cluster.metrics_port": base, "cluster.host": HERE}
        config = load(None, settings | {"engine.tensor_parallel_size": 2, "engine.local_followers": 0})
        says = rf"^cluster\.metrics_port: cannot listen on {HERE}:{base + 1}: Address already in use$"
        with pytest.raises(ConfigError, match=says):
            followers.run(config, Member("prefill", 0, "pod-0-1"), f"{HERE}:9", host=1)
    (child,) = started
    assert child.poll() == -signal.SIGKILL
