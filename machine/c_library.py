"""Compiles a C file with the system's compiler on first use, keeps the result in the cache folder, and loads it."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine.cache_folder import cache_root

COMPILE_TIMEOUT_S = 60
"""It takes about a second; a compiler that hangs must not hang the worker's start."""


class Unavailable(Exception):
    """Why this machine cannot have a library. Not an error: whoever asks has a way that is slower."""


def load(source: Path, flags: Sequence[str], libraries: Sequence[str] = ()) -> ctypes.CDLL:
    """`source`, compiled with `flags` for shared use and linked with `libraries` ("-lm"). Raises Unavailable."""
    try:
        return ctypes.CDLL(str(_compiled(source, ("-O3", "-shared", "-fPIC", *flags), libraries)))
    except (OSError, RuntimeError) as error:  # a cache folder that may not be looked into, or no home for one, among others
        raise Unavailable(f"{source.name} cannot be compiled or loaded: {error}") from error


def c_compiler() -> str | None:
    """Its path: what $CC names, cc or gcc. None where there is none."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")


def _compiled(source: Path, flags: Sequence[str], libraries: Sequence[str]) -> Path:
    if (compiler := c_compiler()) is None:
        raise Unavailable("no C compiler")
    content = source.read_bytes() + " ".join((platform.machine(), compiler, *flags, *libraries)).encode()
    target = cache_root() / f"native-{hashlib.blake2b(content, digest_size=8).hexdigest()}.so"
    if not target.exists():
        _compile([compiler, *flags], source, libraries, target)
    return target


def _compile(command: Sequence[str], source: Path, libraries: Sequence[str], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            # Compiled aside and renamed: workers that start together never load half a file.
            unfinished = Path(folder) / target.name
            full = [*command, "-o", str(unfinished), str(source), *libraries]
            subprocess.run(full, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
            unfinished.replace(target)
    except subprocess.CalledProcessError as error:
        first_line = next((line for line in error.stderr.splitlines() if "error" in line), "no error message")
        raise Unavailable(f"{command[0]} refused: {first_line}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"compiling failed: {error}") from error
