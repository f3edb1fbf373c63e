"""Runs the clients of tests/clients/requirements.txt, which live in a venv of their own, as their users do."""

import os
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent.parent / "clients"
VENV = Path(__file__).parent.parent.parent / ".venv" / "clients"
TIMEOUT_S = 240.0


def clients_venv() -> Path:
    """The folder of the venv. Skips the test where `make test` could not install it; in continuous integration it must be there."""
    if not VENV.with_name(".ready-clients").exists():
        reason = f"no clients in {VENV}: `make .venv/.ready-clients` installs them from a package index"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return VENV


def run(command: list[str], folder: Path, home: Path, **environment: str) -> str:
    """What `command`, a program of the venv and its arguments, printed. It downloads no data sets, and caches in `home`."""
    program = clients_venv() / "bin" / command[0]
    variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {
        "HF_HOME": str(home),
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        **environment,
    }
    variables.pop("PYTHONPATH", None)
    ended = subprocess.run(
        [str(program), *command[1:]],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{command[0]} ended with status {ended.returncode}\n{ended.stdout[-6000:]}"
    return ended.stdout
