"""The process group of a split model: NCCL between GPUs, gloo between CPUs. Nothing here is torch's global default group."""

import socket
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from engine.split.ranks import Group
from engine.split.share import Share

_c10d: Any = distributed
"""Its stubs lack what makes a group by itself."""
Store = Any
"""Where the processes find each other's addresses (torch.distributed.Store)."""


def make_store(host: str, size: int, timeout_s: float) -> tuple[Store, int]:
    """The leader's: where the processes find each other's addresses, and its port. Listens on `host` alone (by itself torch would
    on all)."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = _c10d.TCPStore(
        host,
        port,
        size,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_store(host: str, port: int, size: int, timeout_s: float) -> Store:
    """A follower's way to it."""
    return _c10d.TCPStore(host, port, size, is_master=False, timeout=timedelta(seconds=timeout_s))


def make_group(store: Store, share: Share, device: torch.device, host: str, timeout_s: float) -> Group:
    """Called by all at once; returns when all are connected. `host`: this one's address, as the others reach it. What waits longer
    than `timeout_s` fails: on a CPU with RuntimeError, on a GPU by ending the process (NCCL's watchdog)."""
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        nccl = _c10d.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        group: Group = _c10d.ProcessGroupNCCL(store, share.rank, share.size, nccl)
        return group
    gloo = _c10d.ProcessGroupGloo._Options()
    gloo._devices = [_c10d.ProcessGroupGloo.create_device(hostname=host)]
    gloo._timeout = timeout
    gloo._threads = 1
    group = _c10d.ProcessGroupGloo(store, share.rank, share.size, gloo)
    return group
