"""Rank 0 of a split model: starts the others or waits for them, tells them what to compute, and notices when one is gone."""

import hmac
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.models.checkpoint import Progress
from engine.split.channel import Channel, Message, SplitFailed, pack
from engine.split.group import make_group, make_store
from engine.split.ranks import Ranks
from engine.split.share import Share
from protocol.errors import ConfigError

logger = logging.getLogger(__name__)

KEY_VARIABLE = "SERVAL_SPLIT_KEY"
"""The environment variable by which a follower shows that it belongs to a leader. Not set: the leader draws one for those that it
starts itself."""
HELLO_TIMEOUT_S = 10.0
END_TIMEOUT_S = 5.0


class Leader:
    """Its followers end with it, however it ends: their connection does. Once `failure` is set it never goes away."""

    def __init__(self, folder: Path, config: EngineConfig, progress: Progress | None) -> None:
        """Starts the followers that are its own to start. Raises ConfigError where it cannot listen."""
        self._folder = folder
        self._config = config
        self._progress = progress
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._channels: dict[int, Channel] = {}
        self._ready: set[int] = set()
        self._done: dict[int, int] = {}
        self._is_closing = False
        self.failure: str | None = None
        """Why nothing can be computed any more."""
        self._key = os.environ.get(KEY_VARIABLE) or secrets.token_hex(16)
        host, _, port = config.split_address.rpartition(":")
        try:
            self._listener = socket.create_server((host, int(port)))
            self._store, self._store_port = make_store(host, config.tensor_parallel_size, config.split_timeout_s)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"engine.split_address: {config.split_address} cannot be listened on: {error}") from error
        self._host = host
        self._children = [self._start(rank) for rank in range(1, 1 + config.own_followers)]

    @property
    def address(self) -> tuple[str, int]:
        """Where followers are waited for, until `join` has them all."""
        return self._host, self._listener.getsockname()[1]

    def join(self, device: torch.device) -> Ranks:
        """Waits for all followers to connect. Raises SplitFailed, or ConfigError at the deadline."""
        config = self._config
        deadline = time.monotonic() + config.split_start_timeout_s
        while len(self._channels) < config.tensor_parallel_size - 1:
            self._accept(deadline)
        self._listener.close()
        share = Share(0, config.tensor_parallel_size)
        try:
            return Ranks(share, make_group(self._store, share, device, self._host, config.split_timeout_s))
        except RuntimeError as error:
            raise self.give_up(f"the processes of the split could not connect: {error}") from error

    def wait_ready(self) -> None:
        """Until every follower has its share of the weights. Raises SplitFailed, also at the deadline."""
        everyone = set(range(1, self._config.tensor_parallel_size))
        timeout_s = self._config.split_start_timeout_s
        with self._changed:
            self._changed.wait_for(lambda: self._ready == everyone or self.failure is not None, timeout_s)
            late = sorted(everyone - self._ready)
        if self.failure is not None:
            raise SplitFailed(self.failure)
        if late:
            raise self.give_up(f"ranks {late} had not loaded after {timeout_s:g} s (engine.split_start_timeout_s)")

    def report(self, done: int, total: int) -> None:
        """The leader's own progress with loading; passed on with that of all, whose shares are alike."""
        self._report(0, done, total)

    def tell(self, message: Message) -> None:
        """To all followers. Raises SplitFailed when one is gone."""
        packed = pack(message)
        for rank, channel in self._channels.items():
            if self.failure is not None:
                raise SplitFailed(self.failure)
            try:
                channel.send_packed(packed)
            except SplitFailed as error:
                raise self.give_up(f"rank {rank}: {error}") from error

    def give_up(self, why: str) -> SplitFailed:
        """Nothing more is computed: the processes are out of step. Ends the followers; returns what is to be raised."""
        with self._changed:
            is_first = self.failure is None and not self._is_closing
            self.failure = self.failure or why
            self._changed.notify_all()
        if is_first:
            logger.error("the split model has failed: %s", why)
        self._end(0.0)
        return SplitFailed(self.failure)

    def close(self) -> None:
        """The followers end; those that do not are killed."""
        self._is_closing = True
        self._end(END_TIMEOUT_S)

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        host, port = self.address
        command = [sys.executable, "-m", "engine.split.follower", "--leader", f"{host}:{port}", "--rank", str(rank)]
        environment = os.environ | {KEY_VARIABLE: self._key}
        # Ctrl-C in the terminal is for the leader alone: it drains, and computes with them until then.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)

    def _accept(self, deadline: float) -> None:
        """Lets one follower in, or a stranger not."""
        self._listener.settimeout(1.0)
        try:
            connection, address = self._listener.accept()
        except TimeoutError:
            self._check_children(deadline)
            return
        channel = Channel(connection, self._config.split_timeout_s)
        channel.be_patient(HELLO_TIMEOUT_S)
        hello = channel.receive() or {}
        channel.be_patient(None)
        rank = hello.get("rank")
        if not hmac.compare_digest(str(hello.get("key")).encode(), self._key.encode()) or rank not in self._missing():
            logger.warning("somebody at %s says that it is rank %r of this model's split; refused", address[0], rank)
            channel.close()
            return
        self._channels[rank] = channel
        channel.send(
            {
                "folder": str(self._folder),
                "config": self._config.model_dump(mode="json"),
                "store_port": self._store_port,
            }
        )
        threading.Thread(target=self._watch, args=(rank, channel), name=f"rank-{rank}", daemon=True).start()

    def _missing(self) -> set[int]:
        return set(range(1, self._config.tensor_parallel_size)) - self._channels.keys()

    def _check_children(self, deadline: float) -> None:
        for rank, child in enumerate(self._children, start=1):
            if child.poll() is not None:
                raise self.give_up(f"rank {rank} ended with status {child.returncode} before it had connected")
        if time.monotonic() > deadline:
            waited_s = self._config.split_start_timeout_s
            raise self.give_up(f"ranks {sorted(self._missing())} did not connect within {waited_s:g} s")

    def _watch(self, rank: int, channel: Channel) -> None:
        """In a thread per follower, as long as it lives."""
        try:
            while (message := channel.receive()) is not None:
                self._take(rank, message)
            why = "its process is gone"
        except SplitFailed as error:
            why = str(error)
        if not self._is_closing:
            self.give_up(f"rank {rank}: {why}")

    def _take(self, rank: int, message: Message) -> None:
        if "done" in message:
            self._report(rank, message["done"], message["total"])
        elif "error" in message:
            self.give_up(f"rank {rank}: {message['error']}")
        elif "ready" in message:
            with self._changed:
                self._ready.add(rank)
                self._changed.notify_all()

    def _report(self, rank: int, done: int, total: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done[rank] = done
            self._progress(sum(self._done.values()), total * self._config.tensor_parallel_size)

    def _end(self, timeout_s: float) -> None:
        self._listener.close()
        for channel in list(self._channels.values()):
            channel.close()
        deadline = time.monotonic() + timeout_s
        for child in self._children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
