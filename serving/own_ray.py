"""A Ray of our own on this machine, from its start to the end of all that it left."""

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

from serving.launcher import ClusterFailed

OBJECT_STORE_BYTES = 80_000_000
"""Small: no tensor goes through it."""

END_TIMEOUT_S = 5.0
"""Between asking what a failed start has left to end, and killing it."""
POLL_S = 0.05

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): processes below us whose parent ends become our children, instead of the machine's first process'."""


@contextlib.contextmanager
def own_ray() -> Iterator[None]:
    """However it ends, also where it does not start, none of its processes and files stay. Raises ClusterFailed, ImportError where
    there is no Ray, and KeyboardInterrupt when it is asked to end while it starts."""
    import ray

    before, folder = _children(), tempfile.mkdtemp(prefix="serval-ray-")
    try:
        _start(folder)
        yield
    finally:
        with _undisturbed():
            # What is orphaned from now on comes to us. Before, it would keep Ray's own processes from noticing that they are.
            _adopt_orphans(True)
            with contextlib.suppress(Exception):  # what is wrong with it by now was said, and the rest must go all the same
                ray.shutdown()
            # A start that fails or is broken off half-way is forgotten by Ray, and its processes are not.
            _end_children(but=before)
            _adopt_orphans(False)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever presses Ctrl-C once more would leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():  # others hear of no signal
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(folder: str) -> None:
    import ray

    with explained("Ray did not start"):
        try:
            ray.init(
                # Never a Ray that runs here already: it would be shut down with us.
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
        except SystemExit as error:  # what Ray makes of a SIGTERM while it starts
            raise KeyboardInterrupt from error


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Any error of Ray's, which has no common base for them, as a ClusterFailed that begins with `what`."""
    try:
        yield
    except Exception as error:
        raise ClusterFailed(f"{what}: {_reason(error)}") from error


def within(timeout_s: float, setting: str, what: str, work: Callable[[], None]) -> None:
    """Does `work` of Ray's, whose own waits have no end. Raises ClusterFailed as `explained` does, and when the time is over that
    `setting` gives; what is left of the work then goes on until Ray ends."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="ray-start", daemon=True).start()
    wait([done], timeout_s)
    if not done.done():
        raise ClusterFailed(f"{what} in time ({setting})")
    with explained(what):
        done.result()


def _reason(error: Exception) -> str:
    """One line. What another process raised comes as an error whose own words are a traceback."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = lines[0] if lines else type(cause).__name__
    if isinstance(cause, TimeoutError) or "timed out" in reason:
        return f"{reason.removesuffix('.')}; Ray gives up early on a machine that is busy with other work: try again"
    return reason


def _children() -> set[int]:
    """Processes whose parent is this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # Behind the command, which is in brackets and may hold anything: the state, and the parent.
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(folder.name))
    return found


def _end_children(but: set[int]) -> None:
    """Also those that come to us when their parents end. Asks first: Ray's own end their children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_TIMEOUT_S
        asked: set[int] = set()
        while (left := {child for child in _children() - but if not _has_ended(child)}) and time.monotonic() < deadline:
            for child in left - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)
            asked |= left
            time.sleep(POLL_S)


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:  # somebody else has heard of its end
        return True


def _adopt_orphans(is_wanted: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_wanted), 0, 0, 0)
