"""A link as slow as one likes, between two network namespaces of this machine: veth(4) shaped by tc-tbf(8). Needs root.

    near (decode, router, client) ── serval0 ═══ tbf both ways ═══ serval0 ── far (prefill)

Nothing outside the two namespaces is touched. They are named after this process, so that what a killed run left behind can be
told from what is in use.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import NotMeasured

DEVICE = "serval0"
"""The link's name in either namespace."""

PREFIX = "serval-bench-"
FOLDER = Path("/run/netns")
CLONE_NEWNET = 0x40000000
QUEUE_MS = 50
TICKS_PER_S = 250
SMALLEST_BURST_BYTES = 128 * 1024
COMMAND_TIMEOUT_S = 10


class LinkUnavailable(NotMeasured):
    """This machine does not let us build the link; the message says why and what would help."""


@dataclass(frozen=True)
class Namespace:
    """One end of the link."""

    name: str
    address: str

    @property
    def command_prefix(self) -> list[str]:
        """Runs a command in here. It sees the namespace's devices also under /sys, where UCX looks for them; the process is
        the command itself, with no other in between (ip-netns(8))."""
        return ["ip", "netns", "exec", self.name]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread opens its sockets in here; they keep their namespace. Leave in the thread that entered (setns(2))."""
        with _opened(FOLDER / self.name) as here, _opened(Path("/proc/thread-self/ns/net")) as home:
            _set_namespace(here)
            try:
                yield
            finally:
                _set_namespace(home)


class SlowLink:
    """The link, from `with` to its end, whatever ends it."""

    def __init__(self, megabits_per_second: float) -> None:
        self.megabits_per_second = megabits_per_second
        self.near = Namespace(f"{PREFIX}{os.getpid()}-near", "10.203.0.1")
        self.far = Namespace(f"{PREFIX}{os.getpid()}-far", "10.203.0.2")

    def __enter__(self) -> "SlowLink":
        require_possible()
        remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _build(self) -> None:
        for end in (self.near, self.far):
            _ip("netns", "add", end.name)
        # Both ends are made where they belong: the machine's own namespace never sees them.
        _ip("-n", self.near.name, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", self.far.name)
        for end in (self.near, self.far):
            _ip("-n", end.name, "address", "add", f"{end.address}/30", "dev", DEVICE)
            _ip("-n", end.name, "link", "set", "lo", "up")
            _ip("-n", end.name, "link", "set", DEVICE, "up")
            _run("tc", "-n", end.name, *shaping(self.megabits_per_second))

    def _remove(self) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(LinkUnavailable):
                _ip("netns", "delete", end.name)


def shaping(megabits_per_second: float) -> list[str]:
    """tc's words for the speed. The bucket holds two timer ticks' worth: less would make the link slower than asked."""
    burst_bytes = max(SMALLEST_BURST_BYTES, int(2 * megabits_per_second * 1e6 / 8 / TICKS_PER_S))
    rate = f"{round(megabits_per_second * 1000)}kbit"
    return f"qdisc add dev {DEVICE} root tbf rate {rate} burst {burst_bytes} latency {QUEUE_MS}ms".split()


def require_possible() -> None:
    """Raises LinkUnavailable when it is plain from the start that the link cannot be built."""
    if os.geteuid() != 0:
        raise LinkUnavailable("a slowed link needs root (network namespaces and tc); run this as root, or leave the link out")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise LinkUnavailable(f"a slowed link needs the program `{program}` (package iproute2)")


def remove_leftovers() -> None:
    """Deletes the namespaces of runs whose process is gone."""
    for path in FOLDER.glob(f"{PREFIX}*") if FOLDER.is_dir() else ():
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(LinkUnavailable):
                _ip("netns", "delete", path.name)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise LinkUnavailable(f"`{' '.join(command)}` failed: {' '.join(done.stderr.split())}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
