"""Ranks 1, 2, … of a split model: hold their share and a mirror of the leader's KV pool, and compute what they are told to.

    python -m engine.split.follower --leader HOST:PORT --rank N     # as a leader starts it
    serval follow --leader HOST:PORT --rank N                       # on another host

A follower decides nothing and ends with its leader. Once that has taken it in, SIGTERM is not for it: whoever ends a worker asks
the leader, which works off what it has, with all of its followers, and then they end.
"""

import argparse
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.batch import Batch
from engine.config import EngineConfig
from engine.kv_pool import KVPool
from engine.loading import load_model
from engine.models.base import Model
from engine.placement import choose_device
from engine.split.channel import Channel, Message, SplitFailed
from engine.split.group import join_store, make_group
from engine.split.leader import KEY_VARIABLE
from engine.split.model import send_blocks
from engine.split.ranks import Ranks
from engine.split.share import Share
from engine.split.step import read_spans
from protocol.errors import ConfigError, ServalError
from telemetry import logs

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 600.0
"""A leader on another host may start much later."""
RETRY_PERIOD_S = 0.5
WELCOME_TIMEOUT_S = 60.0
REPORT_PERIOD_S = 0.2
EXIT_FAILED = 1


def follow(leader: str, rank: int, folder: Path | None = None, patience_s: float = CONNECT_TIMEOUT_S) -> None:
    """Runs until the leader has ended; then ends this process. `folder`: the model's on this host, where it is another than the
    leader's. `patience_s`: how long the leader may not be there. Raises ServalError when it cannot begin, or cannot go on."""
    channel = _connect(leader, patience_s)
    channel.send({"rank": rank, "key": os.environ.get(KEY_VARIABLE, "")})
    welcome = channel.receive()
    if welcome is None:
        raise ConfigError(f"the leader at {leader} does not want rank {rank}: a rank that it lacks, and its {KEY_VARIABLE}?")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = EngineConfig.model_validate(welcome["config"])
    messages = _read_on(channel)
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        share = Share(rank, config.tensor_parallel_size)
        device = choose_device(config, rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        host = leader.rpartition(":")[0]
        store = join_store(host, welcome["store_port"], share.size, config.split_timeout_s)
        ranks = Ranks(share, make_group(store, share, device, channel.own_host, config.split_timeout_s))
        report = _Report(channel)
        model, pool, _ = load_model(folder or Path(welcome["folder"]), config, report.take, ranks)
        channel.send({"ready": True})
        compute(messages, model, pool, ranks)
    except Exception as error:
        channel.send({"error": str(error) if isinstance(error, ServalError) else f"{type(error).__name__}: {error}"})
        raise


@dataclass
class _Step:
    """The last forward pass."""

    batch: Batch
    hidden: torch.Tensor | None


def compute(messages: "queue.SimpleQueue[Message]", model: Model, pool: KVPool, ranks: Ranks) -> None:
    """What the leader says, in its order. What is computed is thrown away but for what it adds to everybody's."""
    attention = model.attention_over(pool)
    step: _Step | None = None
    with torch.inference_mode():
        while True:
            message = messages.get()
            if message["kind"] == "forward":
                batch = Batch(read_spans(message["spans"]), pool.block_size, model.device, shifted=message["shifted"])
                if message["adopted"]:
                    send_blocks(ranks, pool, message["adopted"])
                if message["unread"]:
                    ranks.broadcast(batch.token_ids)
                hidden: list[torch.Tensor] = []
                model.forward(batch, pool, attention, None, hidden.append if message["shifted"] else None)
                step = _Step(batch, hidden[0] if hidden else None)
            elif message["kind"] == "draft":
                assert step is not None and step.hidden is not None and model.draft_head is not None
                count, chosen = step.batch.num_tokens, message["chosen"]
                numbers = ranks.broadcast(torch.empty(count + chosen, dtype=torch.int64, device=model.device))
                model.draft_head.draft(step.batch, step.hidden, numbers[:count], numbers[count:], pool, attention)
            elif message["kind"] == "logits":
                rows = torch.empty(message["rows"], model.config.hidden_size, dtype=pool.dtype, device=model.device)
                model.logits(ranks.broadcast(rows))


class _Report:
    """Progress with loading, not oftener than anybody looks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._next = 0.0

    def take(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + REPORT_PERIOD_S
            self._channel.send({"done": done, "total": total})


def _connect(leader: str, patience_s: float) -> Channel:
    host, _, port = leader.rpartition(":")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=WELCOME_TIMEOUT_S)
            return Channel(connection, WELCOME_TIMEOUT_S)
        except ValueError:
            raise ConfigError(f"leader: must be HOST:PORT, not {leader!r}") from None
        except OSError as error:
            if time.monotonic() > deadline:
                raise SplitFailed(f"the leader at {leader} cannot be reached: {error}") from error
        time.sleep(RETRY_PERIOD_S)


def _read_on(channel: Channel) -> "queue.SimpleQueue[Message]":
    """What the leader says. When it ends so does this process, whatever it is doing: a thread that waits for others in a
    collective cannot be woken."""
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def read() -> None:
        try:
            while (message := channel.receive()) is not None:
                messages.put(message)
        finally:
            os._exit(0)

    threading.Thread(target=read, name="leader", daemon=True).start()
    return messages


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.split.follower", description=__doc__)
    parser.add_argument("--leader", required=True, help="HOST:PORT")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--patience-s", type=float, default=CONNECT_TIMEOUT_S, help="how long the leader may not be there")
    arguments = parser.parse_args()
    logs.configure(f"rank-{arguments.rank}")
    try:
        follow(arguments.leader, arguments.rank, patience_s=arguments.patience_s)
    except ServalError as error:
        logger.error("%s", error)
    except Exception:
        logger.exception("rank %d failed", arguments.rank)
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
