"""A Ray that does not start: one sentence, and nothing of it stays. What it had started by then is a stand-in."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
import ray
from ray.exceptions import GetTimeoutError, RaySystemError, RayTaskError

from serving import own_ray as module
from serving.launcher import ClusterFailed
from serving.own_ray import explained, own_ray, within

pytestmark = [pytest.mark.ray, pytest.mark.timeout(30)]

# What ray.init raises on a machine that is too busy for it.
LATE = "The current node timed out during startup. This could happen because the GCS has become overloaded."
BUSY = "Ray gives up early on a machine that is busy with other work: try again"

POLITE = "import time; print('there', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + POLITE
# Ends at once when it is asked to, and another stays, as agents do whose raylet is killed while it starts.
PARENT = (
    f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {DEAF!r}], stdout=subprocess.PIPE); "
    "child.stdout.readline(); print('there', child.pid, flush=True); child.wait()"
)


@pytest.fixture
def half_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, BaseException], list[int]]:
    """Makes ray.init start a process that runs a program, write a file, and fail. Returns the ids of the processes that there
    will be."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "END_TIMEOUT_S", 1.0)

    def prepare(program: str, error: BaseException) -> list[int]:
        started: list[int] = []

        def init(*, _temp_dir: str, **_: object) -> None:
            Path(_temp_dir, "session").write_text("of a Ray that does not start")
            child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            word, *others = child.stdout.readline().split()
            assert word == "there"
            started.extend([child.pid, *map(int, others)])
            raise error

        monkeypatch.setattr(ray, "init", init)
        return started

    return prepare


@pytest.mark.parametrize("program", [POLITE, DEAF, PARENT])
def test_a_start_that_fails_half_way_leaves_nothing(half_started: Any, program: str, tmp_path: Path) -> None:
    started = half_started(program, Exception(LATE))
    own = subprocess.Popen([sys.executable, "-c", POLITE], stdout=subprocess.PIPE)
    try:
        with pytest.raises(ClusterFailed) as raised, own_ray():
            pytest.fail("it did not start")
        assert str(raised.value) == f"Ray did not start: {LATE.removesuffix('.')}; {BUSY}"
        assert list(tmp_path.iterdir()) == []
        assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
        assert len(started) == 1 + (program is PARENT)
        assert own.poll() is None, "was there before"
    finally:
        own.kill()
        own.wait()


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(15)], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_start_leaves_nothing(half_started: Any, tmp_path: Path, end: BaseException) -> None:
    started = half_started(POLITE, end)
    with pytest.raises(KeyboardInterrupt), own_ray():
        pytest.fail("it did not start")
    assert list(tmp_path.iterdir()) == []
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    assert started


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GetTimeoutError("Get timed out: some object(s) not ready."), f"Get timed out: some object(s) not ready; {BUSY}"),
        (
            ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:6379"),
            "Failed to connect to Ray cluster at 127.0.0.1:6379",
        ),
        (RaySystemError("the store is full\nTraceback: ..."), "System error: the store is full"),
        (RayTaskError("build", "Traceback: ...\nOSError: no such folder", OSError("no such folder")), "no such folder"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_whatever_ray_raises_is_one_line(error: Exception, says: str) -> None:
    with pytest.raises(ClusterFailed) as raised, explained("Ray Serve did not start"):
        raise error
    assert str(raised.value) == f"Ray Serve did not start: {says}"
    assert raised.value.__cause__ is error


def test_what_does_not_end_is_not_waited_for() -> None:
    never = threading.Event()
    with pytest.raises(ClusterFailed, match=r"^Ray Serve did not start in time \(cluster.start_timeout_s\)$"):
        within(0.1, "cluster.start_timeout_s", "Ray Serve did not start", lambda: never.wait() and None)
    never.set()
    with pytest.raises(ClusterFailed, match=r"^Ray Serve did not start: no such folder$"):
        within(10.0, "cluster.start_timeout_s", "Ray Serve did not start", raising(OSError("no such folder")))
    within(10.0, "cluster.start_timeout_s", "Ray Serve did not start", lambda: None)


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_children_are_those_of_this_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", POLITE], stdout=subprocess.PIPE)
    try:
        found = module._children()
        assert child.pid in found
        assert not {os.getpid(), os.getppid()} & found
    finally:
        child.kill()
        child.wait()
    assert child.pid not in module._children()


def test_another_ctrl_c_while_it_is_taken_down_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, half_started: Callable[[str, BaseException], list[int]]
) -> None:
    started = half_started(POLITE, RuntimeError("did not start"))

    def shut_down() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ray, "shutdown", shut_down)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ClusterFailed, match="did not start"), own_ray():
        pass
    assert started and not any(Path(f"/proc/{child}").exists() for child in started)
    assert signal.getsignal(signal.SIGINT) is before
