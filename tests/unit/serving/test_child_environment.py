"""Threads of the libraries that read them from the environment: as many as the engine of that process has."""

from pathlib import Path

import pytest

from engine.tiny import write_tiny_llama
from serving.child import library_settings
from serving.config import load
from serving.roles import Role


@pytest.mark.parametrize(("role", "threads"), [("router", 3), ("prefill", 7), ("decode", 4), (None, 3)])
def test_a_process_gets_the_threads_of_its_own_role(tmp_path: Path, role: Role | None, threads: int) -> None:
    pools = {"prefill_engine": {"threads": None}, "decode_engine": {"threads": 4}}
    config = load(None, {"model": write_tiny_llama(tmp_path / "tiny"), "engine.threads": 3, **pools})
    settings = library_settings(config, role, cores=7)
    assert (settings["OMP_NUM_THREADS"], settings["MKL_NUM_THREADS"]) == (str(threads), str(threads))
