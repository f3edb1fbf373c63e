"""Clusters whose workers have a device's speed, whatever the CPU does (tests/cluster/paced)."""

import os
from pathlib import Path

import cluster_harness
import pytest

START_TIMEOUT_S = 400.0
"""A busy machine takes long to start half a dozen processes that import torch."""


def pace(monkeypatch: pytest.MonkeyPatch, *, prompt_tokens_per_s: float, step_s: float) -> None:
    """For every cluster that is started from now on."""
    path = [str(Path(__file__).parent / "paced"), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("SERVAL_PACE", f"{prompt_tokens_per_s:g},{step_s:g}")
    monkeypatch.setattr(cluster_harness, "START_TIMEOUT_S", START_TIMEOUT_S)
