"""The drain of a process that is not its container's first: `python -m serving.pod_drain [--wait-s N]`, what preStop runs.

In a pod of Ray's, SIGTERM goes to Ray, which would end the replica beside it at once. So the replica listens at a socket in the
pod's own /tmp, this command asks it there before Kubernetes sends any signal, and returns when the open work has ended. Nobody
outside the container can reach that socket. Standard library alone: a pod that ends has no time for imports.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

DOOR = Path("/tmp/serval-drain.sock")
DRAINED = b"drained"


async def answer_at(door: Path, drain: Callable[[], Awaitable[None]]) -> asyncio.Server:
    """Drains, for whoever connects, and says so then. A process that was here before is gone: its door is taken over."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await drain()
            writer.write(DRAINED)
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, door)
    await asyncio.to_thread(door.chmod, 0o600)
    return server


def ask(door: Path) -> bool:
    """Waits until the process behind the door has drained. False: there is none, or it ended meanwhile. The caller has a deadline:
    a pod's terminationGracePeriodSeconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, contextlib.suppress(OSError):
        connection.connect(str(door))
        return connection.recv(len(DRAINED)) == DRAINED
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.pod_drain", description=__doc__)
    parser.add_argument("--wait-s", type=float, default=0, help="seconds to go on as ever before the drain")
    parser.add_argument("--door", type=Path, default=DOOR, help="where the process listens")
    arguments = parser.parse_args()
    time.sleep(arguments.wait_s)
    print("drained" if ask(arguments.door) else "no process to drain", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
