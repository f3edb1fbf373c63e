"""Where this machine keeps what it made once: converted models, compiled kernels. Light: imports nothing of ours."""

import os
from pathlib import Path


def cache_root() -> Path:
    """$SERVAL_CACHE, else the XDG cache folder."""
    if folder := os.environ.get("SERVAL_CACHE"):
        return Path(folder).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "serval"
