"""The processes that share one model start together and end together, however one of them ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.loop import EngineLoop
from engine.sequence import Sequence
from engine.split.channel import Channel, SplitFailed
from engine.split.leader import Leader
from engine.tiny_longcat import write_tiny_longcat
from protocol.errors import ConfigError
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics

pytestmark = pytest.mark.timeout(180)

PROMPT = list(range(4, 120))
END_TIMEOUT_S = 30.0
LATE_S = 3.0
"""How long a step waits for a process that stands still."""


def config(processes: int) -> EngineConfig:
    return EngineConfig(
        dtype="float32",
        device="cpu",
        kv_memory_bytes=1 << 20,
        threads=1,
        max_batch_tokens=64,
        tensor_parallel_size=processes,
        split_timeout_s=LATE_S,
    )


def ask(engine: Engine) -> Sequence:
    sequence = Sequence("one", PROMPT, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    engine.submit(sequence)
    return sequence


def answer(engine: Engine) -> list[int]:
    sequence = ask(engine)
    while not engine.is_idle:
        engine.step()
    engine.release(sequence)
    return sequence.output


def followers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "engine.split.follower" in child.cmdline()]


def until_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, END_TIMEOUT_S)
    assert not left, f"{left} outlived their leader"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_longcat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine.load(folder, config(2), Metrics("decode", "test"))
    yield engine
    engine.close()
    assert not followers()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_follower_that_dies_or_stands_still_fails_the_step(folder: Path, engine: Engine, how: signal.Signals) -> None:
    """Within the deadline; the loop is not healthy any more, so that the worker is replaced, and nothing is left of the split."""
    assert answer(engine) == answer(Engine.load(folder, config(1), Metrics("decode", "whole")))
    loop = EngineLoop(engine, publish=lambda updates: None)
    (follower,) = followers()
    ask(engine)
    follower.send_signal(how)
    began = time.monotonic()
    with pytest.raises(SplitFailed):
        for _ in range(2):  # what runs may just have ended
            engine.step()
    assert time.monotonic() - began < LATE_S + 10.0
    assert engine.failure is not None
    assert not loop.is_healthy
    until_gone([follower])
    with pytest.raises(SplitFailed):
        ask(engine)
        engine.step()


LEADER = """
import sys
from pathlib import Path
from engine.engine import Engine
from tests.integration.test_split_processes import answer, config, followers
from telemetry.metrics import Metrics
seen = []
engine = Engine.load(Path(sys.argv[1]), config(2), Metrics("decode", "test"), progress=lambda *counts: seen.append(counts))
answer(engine)
print(*[follower.pid for follower in followers()], *seen[-1], flush=True)
sys.stdin.read()
"""


def test_followers_end_with_a_leader_that_is_killed(folder: Path) -> None:
    leader = subprocess.Popen([sys.executable, "-c", LEADER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert leader.stdout is not None
        pid, done, total = map(int, leader.stdout.readline().split())
        assert done == total, "progress is that of all processes, to its end"
        follower = psutil.Process(pid)
    finally:
        os.kill(leader.pid, signal.SIGKILL)
        leader.communicate()
    until_gone([follower])


def test_a_split_that_is_impossible_starts_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ConfigError, match=r"engine\.tensor_parallel_size: 3 processes cannot share 4 attention heads evenly"):
        Engine.load(folder, config(3), Metrics("decode", "test"))


def test_a_stranger_is_not_let_in(folder: Path) -> None:
    """Nor one who does not come within the deadline; then the worker says who is missing."""
    settings = config(2).model_copy(update={"local_followers": 0, "split_start_timeout_s": 2.0})
    leader = Leader(folder, settings, None)
    try:
        stranger = Channel(socket.create_connection(leader.address), 5.0)
        stranger.send({"rank": 1, "key": "guessed, ä"})
        with pytest.raises(SplitFailed, match=r"ranks \[1\] did not connect within 2 s"):
            leader.join(torch.device("cpu"))
        assert stranger.receive() is None
    finally:
        leader.close()
