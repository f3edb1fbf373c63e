"""Loads decode.c, compiled for this machine, where its processor has what it needs."""

import ctypes
import logging
import platform
from functools import cache
from pathlib import Path

from machine import c_library
from machine.c_library import Unavailable

SOURCE = Path(__file__).with_name("decode.c")
CPU_FLAGS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"})
COMPILER_FLAGS = ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
"""What CPU_FLAGS promise and no more: then a cache folder that several machines share serves them all."""

log = logging.getLogger(__name__)


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None, with a log line that says why, where this machine cannot have them."""
    try:
        library = _load()
    except Unavailable as reason:
        log.info("native kernels are off, torch computes every step: %s", reason)
        return None
    log.info("native kernels are on for decode steps")
    return library


def _load() -> ctypes.CDLL:
    missing = sorted(CPU_FLAGS - _cpu_flags())
    if missing:
        raise Unavailable(f"the CPU lacks {', '.join(missing)}")
    library = c_library.load(SOURCE, COMPILER_FLAGS, libraries=("-lm",))
    library.serval_workspace_bytes.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.serval_workspace_bytes.restype = ctypes.c_int64
    library.serval_decode.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.serval_decode.restype = None
    if library.serval_request_tiles() != 0:
        raise Unavailable("the kernel does not grant the AMX tile registers")
    return library


def _cpu_flags() -> frozenset[str]:
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
