"""The kernel of paged attention, without a GPU: its numbers by Triton's interpreter, and that Triton compiles it for GPUs."""

import importlib.util
import os
import subprocess
import sys

import pytest

DEADLINE_S = 300

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.timeout(DEADLINE_S + 10),
]


def check(what: str, **environment: str) -> list[str]:
    command = [sys.executable, "-m", "tests.unit.engine.paged_kernel_check", what]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_as_gathering() -> None:
    assert len(check("interpret", TRITON_INTERPRET="1")) == 12


@pytest.mark.long
def test_it_compiles() -> None:
    assert len(check("compile")) == 16
