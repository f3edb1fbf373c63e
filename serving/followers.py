"""The processes of one worker's model on a host that is not the worker's own: `python -m serving.followers`.

Each is what `serval follow` is (engine/split/follower.py). They live and die together: when one ends the others are ended, and
so does this command, which whoever started it starts again. SIGTERM is passed on and waited out: processes that a leader has taken
in end with it, after its drain.
"""

import argparse
import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from engine.config import EngineConfig
from protocol.errors import ConfigError
from serving.config import ServalConfig, load, parse_settings
from serving.roles import Member, metrics_endpoint
from telemetry import logs
from telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How late the end of a process is noticed, at most."""
END_TIMEOUT_S = 5.0

EXIT_FAILED = 1
EXIT_CONFIG = 2


def ranks_of(engine: EngineConfig, host: int) -> range:
    """Of the processes on the worker's `host`-th machine; its own is the 0th. Raises ConfigError when there is no such machine."""
    here, all_of_them = engine.own_followers + 1, engine.tensor_parallel_size
    if not 1 <= host < all_of_them // here or all_of_them % here:
        raise ConfigError(
            f"engine.local_followers: {here} processes on each machine do not make {all_of_them} "
            f"(engine.tensor_parallel_size) with a machine {host}"
        )
    return range(host * here, (host + 1) * here)


class Followers:
    """Processes `ranks` of the model whose leader waits at `leader` (HOST:PORT), or will within `patience_s`. SERVAL_SPLIT_KEY in
    the environment is its."""

    def __init__(self, leader: str, ranks: Sequence[int], patience_s: float) -> None:
        self._children = {rank: _start(leader, rank, patience_s) for rank in ranks}

    def why_not(self) -> str | None:
        """None while all of them run."""
        for rank, child in self._children.items():
            if (status := child.poll()) is not None:
                return f"rank {rank} ended with status {status}"
        return None

    def ask(self) -> None:
        """To end, where no leader has taken them in. The others end with their leader."""
        for child in self._children.values():
            child.terminate()

    def end(self) -> None:
        """At once."""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait(END_TIMEOUT_S)


def _start(leader: str, rank: int, patience_s: float) -> "subprocess.Popen[bytes]":
    words = ["--leader", leader, "--rank", str(rank), "--patience-s", str(patience_s)]
    command = [sys.executable, "-m", "engine.split.follower", *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def run(config: ServalConfig, member: Member, leader: str, host: int) -> int:
    """Until one of them ends. The exit status: 0 when that was asked for. Raises ConfigError for ports that are taken."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    engine = config.engine_of(member.role)
    followers = Followers(leader, ranks_of(engine, host), engine.split_start_timeout_s)
    # /ready as well: work comes to the leader alone, which is ready when all that follow it are.
    probes = {"/health": followers.why_not, "/ready": followers.why_not}
    try:
        with contextlib.closing(metrics_endpoint(config, member, Metrics(member.role, member.name), probes)):
            while (reason := followers.why_not()) is None:
                if asked.is_set():
                    followers.ask()
                time.sleep(POLL_S)
        logger.info("%s; the others end too", reason)
    finally:
        followers.end()
    return 0 if asked.is_set() else EXIT_FAILED


def main() -> int:
    arguments = argument_parser().parse_args()
    member = Member(arguments.role, 0, arguments.name)
    try:
        config = load(arguments.config, parse_settings(arguments.set))
        logs.configure(member.name, config.cluster.log_level)
        return run(config, member, arguments.leader, arguments.host)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG


def argument_parser() -> argparse.ArgumentParser:
    """What this command takes."""
    parser = argparse.ArgumentParser(prog="python -m serving.followers", description=__doc__)
    parser.add_argument("--role", choices=("prefill", "decode"), required=True, help="of the worker")
    parser.add_argument("--name", required=True, help="what this is called in logs")
    parser.add_argument("--config", type=Path, required=True, help="YAML file with settings, the worker's own")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as the worker's; may be repeated")
    parser.add_argument("--leader", required=True, help="HOST:PORT: the worker's engine.split_address")
    parser.add_argument("--host", type=int, required=True, help="which of the worker's machines this is; its own is 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
