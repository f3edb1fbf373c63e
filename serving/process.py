"""The entry of one process: `python -m serving.process --role decode --config FILE --router HOST:PORT`.

It builds one server, reports on the status pipe, and on SIGTERM or SIGINT drains and stops it; a second signal skips the
drain. A launcher's child dies with its launcher; a container runs the same command.
"""

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import uvloop

from protocol.errors import ConfigError, ServalError
from serving.config import ServalConfig, load, parse_settings
from serving.roles import Member, Server, build
from serving.status import StatusWriter
from telemetry import logs

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends us when our parent ends."""

HEALTH_PERIOD_S = 1.0

ROUTER_SWITCH_INTERVAL_S = 20e-6
"""How long the router's loop may hold the interpreter lock while gRPC's polling thread wants it (Python's default: 5 ms). Each
message from a worker passes that thread: at the default a busy loop gets one when it has run dry, and seldom while it writes,
so less gathers. Measured with 32 flooded streams: 82 us per token and 12,200 tokens/s at the default, 66 and 15,400 with this.
Single runs came to 24 and 41,100; why not all do is not known."""

EXIT_FAILED = 1
EXIT_CONFIG = 2


def main() -> int:
    arguments = argument_parser().parse_args()
    if arguments.parent:
        _die_with(arguments.parent)
    os.set_inheritable(arguments.status_fd, False)
    status = StatusWriter(arguments.status_fd)
    member = Member(arguments.role, arguments.index, arguments.name)
    if member.role == "router":
        sys.setswitchinterval(ROUTER_SWITCH_INTERVAL_S)
    try:
        config = _read_config(arguments)
        logs.configure(member.name, config.cluster.log_level)
        server = build(member, config, arguments.router, status.progress)
        uvloop.run(_serve(server, config, status))
    except ConfigError as error:
        status.failed(str(error))
        return EXIT_CONFIG
    except (ServalError, OSError) as error:
        status.failed(str(error))
        return EXIT_FAILED
    except Exception as error:
        logger.exception("%s failed", member.name)
        status.failed(f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    return 0


async def _serve(server: Server, config: ServalConfig, status: StatusWriter) -> None:
    signals = _Signals()
    start = asyncio.create_task(server.start())
    try:
        await _first_of(start, signals.stop)
        if start.done():
            status.ready(start.result())
            gc.collect()
            gc.freeze()  # what start-up made stays: no later collection need walk through it
            sick = asyncio.create_task(_until_sick(server))
            await _first_of(sick, signals.stop)
            if sick.done():
                sick.result()  # raises: the launcher starts another process in this one's place
            sick.cancel()
            drain = asyncio.create_task(server.drain(config.cluster.drain_timeout_s))
            await _first_of(drain, signals.hurry)
            drain.cancel()
        start.cancel()
    finally:
        signals.give_up_after(config.cluster.stop_timeout_s)
        await server.stop(config.cluster.stop_timeout_s / 2)


async def _until_sick(server: Server) -> None:
    """Raises what the server's check raises, when it does."""
    while True:
        await asyncio.sleep(HEALTH_PERIOD_S)
        await server.check_health()


async def _first_of(task: "asyncio.Task[object]", event: asyncio.Event) -> None:
    waiter = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


class _Signals:
    """SIGTERM and SIGINT as events: the first asks to stop, the second to hurry."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def give_up_after(self, timeout_s: float) -> None:
        """The process ends by then, whatever still runs in it: a thread in a foreign library cannot be cancelled."""
        timer = threading.Timer(timeout_s, os._exit, args=(EXIT_FAILED,))
        timer.daemon = True
        timer.start()


def _die_with(parent: int) -> None:
    """Asks the kernel for SIGKILL when the parent ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(EXIT_FAILED)


def _read_config(arguments: argparse.Namespace) -> ServalConfig:
    if arguments.config is not None:
        return load(arguments.config, parse_settings(arguments.set))
    with os.fdopen(arguments.config_fd) as stream:
        return ServalConfig.model_validate_json(stream.read())


def argument_parser() -> argparse.ArgumentParser:
    """What this command takes."""
    parser = argparse.ArgumentParser(prog="python -m serving.process", description=__doc__)
    parser.add_argument("--role", choices=("router", "prefill", "decode"), required=True)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--name", default="", help="what the process is called; default: its role and index")
    router_help = "link address of a router to dial, or dns:NAME:PORT for all behind the name; may be repeated"
    parser.add_argument("--router", action="append", default=[], help=router_help)
    set_help = "any setting, over those of --config, such as cluster.host=10.0.0.7; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=set_help)
    parser.add_argument("--parent", type=int, default=0, help="process id to die with; 0: nobody's")
    parser.add_argument("--status-fd", type=int, default=1, help="where status reports go")
    config = parser.add_mutually_exclusive_group(required=True)
    config.add_argument("--config", type=Path, help="YAML file with settings, as of `serval up`")
    config.add_argument("--config-fd", type=int, help="descriptor to read the whole configuration from, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
