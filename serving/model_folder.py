"""Where models lie. Light: imports no model library."""

import os
from pathlib import Path

MODEL_NAME = "smollm2-135m-instruct"
"""The embedded model's name for clients, and its folder's name in the cache."""


def cache_root() -> Path:
    """Where converted models live: $SERVAL_CACHE, else the XDG cache folder."""
    if folder := os.environ.get("SERVAL_CACHE"):
        return Path(folder).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "serval"


def embedded_folder() -> Path:
    """Where the embedded model is, or will be once it is converted (serving/embedded_model.py)."""
    return cache_root() / MODEL_NAME
