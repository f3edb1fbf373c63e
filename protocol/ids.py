"""Identifiers as distinct types, and the identity of this process."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from protocol import cluster_pb2

RequestId = NewType("RequestId", str)
"""A request's name, unique across the cluster; also in logs and HTTP headers."""

RequestNumber = NewType("RequestNumber", int)
"""A router's number for a request, unique within one router-worker stream."""

Incarnation = NewType("Incarnation", int)
"""63 random bits drawn at process start. Peers are known by it, never by host:port alone."""

LeaseId = NewType("LeaseId", int)
"""A decode worker's number for one write lease, unique within its incarnation."""

BlockId = NewType("BlockId", int)
"""Index of a KV block in a worker's pool; the same index in every layer."""


def draw_incarnation() -> Incarnation:
    """A new incarnation; call once per process."""
    return Incarnation(secrets.randbits(63) | 1)


@dataclass(frozen=True)
class ProcessIdentity:
    """Names one process on one host, so that a peer on the same host can confirm that it is gone (proc(5))."""

    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int

    @classmethod
    def of_this_process(cls) -> "ProcessIdentity":
        boot_id, namespace = _host_identity()
        pid = os.getpid()
        return cls(boot_id, namespace, pid, _start_ticks(pid) or 0)

    @classmethod
    def from_proto(cls, message: cluster_pb2.ProcessIdentity) -> "ProcessIdentity":
        return cls(message.boot_id, message.pid_namespace, message.pid, message.start_ticks)

    def to_proto(self) -> cluster_pb2.ProcessIdentity:
        return cluster_pb2.ProcessIdentity(
            boot_id=self.boot_id, pid_namespace=self.pid_namespace, pid=self.pid, start_ticks=self.start_ticks
        )

    def is_gone(self) -> bool:
        """True only when the process provably no longer runs: same host, and its pid is free, reused or a zombie.

        A process on another host, or in another pid namespace, is never reported gone.
        """
        if not self.boot_id or (self.boot_id, self.pid_namespace) != _host_identity():
            return False
        return _start_ticks(self.pid) != self.start_ticks


def _host_identity() -> tuple[str, str]:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, or None where no such process runs any more (a zombie's memory is gone too)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start_ticks = fields[0], int(fields[19])
    return None if state in "ZX" else start_ticks
