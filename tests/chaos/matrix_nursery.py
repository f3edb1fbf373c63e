"""Where the matrix's processes come from: one process that has imported what all of them need, and forks.

A fresh interpreter spends seconds of processor time on importing torch, and the matrix starts dozens of processes beside those that
it measures. What is forked runs `serving.process` from its first line on, in a session and a network namespace of its own.

Started as `python matrix_nursery.py`: reads one JSON order per line, answers each with the new process's pid. Everybody dies with
it, and it with whoever started it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
"""setns(2)."""


@dataclass(frozen=True)
class Order:
    """Arguments of `serving.process`, the file that takes its output, and the network namespace by name; empty: ours."""

    arguments: list[str]
    log: str
    namespace: str = ""


class Nursery:
    """`with Nursery() as nursery`: `start` from one thread at a time."""

    def __enter__(self) -> "Nursery":
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for us alone
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, order: Order) -> int:
        """The new process's pid. The first call waits until everything is imported."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the nursery has ended with status {self._process.poll()}"
        return int(answer)


def main() -> None:
    """The nursery itself."""
    from serving import process

    process._die_with(int(sys.argv[1]))
    _import_all()
    assert threading.active_count() == 1 == len(list(Path("/proc/self/task").iterdir())), "a thread would not survive a fork"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: whoever has ended is gone
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            os._exit(_become(order))
        print(pid, flush=True)


def _import_all() -> None:
    import decode.worker
    import prefill.worker
    import router.router

    assert decode.worker and prefill.worker and router.router


def _become(order: Order) -> int:
    """In the new process: what an exec of `python -m serving.process` would have given it, then that."""
    from serving import process

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    if order.namespace:
        descriptor = os.open(f"/run/netns/{order.namespace}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    sys.argv = ["serving.process", *order.arguments]
    status = process.main()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    main()
