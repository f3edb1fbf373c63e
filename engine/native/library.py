"""Compiles decode.c with the system's C compiler on first use, keeps the result in the cache folder, and loads it."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from engine.cache_folder import cache_root

SOURCE = Path(__file__).with_name("decode.c")
CPU_FLAGS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"})
COMPILER_FLAGS = (
    *("-O3", "-shared", "-fPIC"),
    # What CPU_FLAGS promise and no more: then a cache folder that several machines share serves them all.
    *("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
)
COMPILE_TIMEOUT_S = 60
"""It takes about a second; a compiler that hangs must not hang the worker's start."""

log = logging.getLogger(__name__)


class Unavailable(Exception):
    """Why this machine runs no native kernels. Not an error: torch computes the same."""


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None, with a log line that says why, where this machine cannot have them."""
    try:
        library = _open(_compiled())
    except Unavailable as reason:
        log.info("native kernels are off, torch computes every step: %s", reason)
        return None
    log.info("native kernels are on for decode steps")
    return library


def _compiled() -> Path:
    missing = sorted(CPU_FLAGS - _cpu_flags())
    if missing:
        raise Unavailable(f"the CPU lacks {', '.join(missing)}")
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("no C compiler")
    source = SOURCE.read_bytes()
    digest = hashlib.blake2b(source + " ".join((compiler, *COMPILER_FLAGS)).encode(), digest_size=8).hexdigest()
    target = cache_root() / f"native-{digest}.so"
    if not target.exists():
        _compile(compiler, target)
    return target


def _compile(compiler: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            # Compiled aside and renamed: workers that start together never load half a file.
            unfinished = Path(folder) / target.name
            command = [compiler, *COMPILER_FLAGS, "-o", str(unfinished), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
            unfinished.replace(target)
    except subprocess.CalledProcessError as error:
        first_line = next((line for line in error.stderr.splitlines() if "error" in line), "no error message")
        raise Unavailable(f"{compiler} refused: {first_line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"compiling failed: {error}") from error


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded: {error}") from error
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
