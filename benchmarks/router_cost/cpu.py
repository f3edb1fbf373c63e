"""The processor time of one process and its children, as Linux counts it (proc(5))."""

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME, _CUTIME, _CSTIME = 11, 12, 13, 14
"""Fields of /proc/PID/stat, counted behind the name."""


def cpu_s(pid: int) -> float:
    """User and system seconds so far, of the process, its live descendants and those children that it has waited for."""
    ticks = _ticks(pid)
    for child in _children(pid):
        ticks += cpu_s(child) * TICKS_PER_S
    return ticks / TICKS_PER_S


def _ticks(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in (_UTIME, _STIME, _CUTIME, _CSTIME))


def _children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]
