"""Where models lie. Light: imports no model library."""

from pathlib import Path

from machine.cache_folder import cache_root

MODEL_NAME = "smollm2-135m-instruct"
"""The embedded model's name for clients, and its folder's name in the cache."""


def embedded_folder() -> Path:
    """Where the embedded model is, or will be once it is converted (serving/embedded_model.py)."""
    return cache_root() / MODEL_NAME
