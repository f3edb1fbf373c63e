"""The slowed link: its words to tc, and the real thing where this machine allows it."""

import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from benchmarks import slow_link
from benchmarks.slow_link import FOLDER, LinkUnavailable, SlowLink, require_possible, shaping

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None,
    reason="network namespaces need root and iproute2",
)

NETWORK = Path("/proc/thread-self/ns/net")


def test_shaping_keeps_two_ticks_in_the_bucket() -> None:
    words = shaping(1000.0)
    assert words[words.index("rate") + 1] == "1000000kbit"
    assert words[words.index("burst") + 1] == "1000000"
    assert shaping(1.0)[shaping(1.0).index("burst") + 1] == str(128 * 1024)


def test_without_root_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LinkUnavailable, match="root"):
        require_possible()


def test_without_iproute2_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(slow_link.shutil, "which", lambda _: None)
    with pytest.raises(LinkUnavailable, match="iproute2"):
        require_possible()


@pytest.fixture
def link() -> SlowLink:
    """A link of 100 Mbit/s, not built yet; skips where the machine refuses it (containers often do)."""
    made = SlowLink(100.0)
    try:
        with made:
            pass
    except LinkUnavailable as error:
        pytest.skip(str(error))
    return made


@needs_root
def test_the_link_carries_what_it_was_asked_to_and_no_more(link: SlowLink) -> None:
    size = 4_000_000
    with link:
        with link.near.entered():
            listener = socket.create_server((link.near.address, 0))
            listener.settimeout(10)
        with link.far.entered():
            sender = socket.create_connection(listener.getsockname(), timeout=10)
        receiver, _ = listener.accept()
        receiver.settimeout(10)
        with listener, sender, receiver:
            writing = threading.Thread(target=sender.sendall, args=(bytes(size),))
            started_s = time.perf_counter()
            writing.start()
            received = 0
            while received < size:
                received += len(receiver.recv(1 << 20))
            seconds = time.perf_counter() - started_s
            writing.join(10)
    megabits_per_second = size * 8 / 1e6 / seconds
    assert megabits_per_second < 110  # a shaper that does not shape gives thousands


@needs_root
def test_nothing_of_it_stays(link: SlowLink) -> None:
    home = NETWORK.readlink()
    with pytest.raises(RuntimeError, match="in the middle"), link, link.near.entered():
        assert NETWORK.readlink() != home
        raise RuntimeError("in the middle")
    assert NETWORK.readlink() == home
    assert not (FOLDER / link.near.name).exists() and not (FOLDER / link.far.name).exists()


@needs_root
def test_what_a_killed_run_left_is_removed(link: SlowLink) -> None:
    dead = f"{slow_link.PREFIX}{_unused_pid()}-near"
    slow_link._ip("netns", "add", dead)
    with link:
        assert not (FOLDER / dead).exists()
        assert (FOLDER / link.near.name).exists()


def _unused_pid() -> int:
    return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
