"""Threads of the libraries that read them from the environment: as many as the engine of that process has."""

from pathlib import Path

import pytest

from engine.tiny import write_tiny_llama
from serving.child import library_settings
from serving.config import load
from serving.ray_app import own_environment
from serving.roles import Role


@pytest.mark.parametrize(("role", "threads"), [("router", 3), ("prefill", 7), ("decode", 4), (None, 3)])
def test_a_process_gets_the_threads_of_its_own_role(tmp_path: Path, role: Role | None, threads: int) -> None:
    pools = {"prefill_engine": {"threads": None}, "decode_engine": {"threads": 4}}
    config = load(None, {"model": write_tiny_llama(tmp_path / "tiny"), "engine.threads": 3, **pools})
    settings = library_settings(config, role, cores=7)
    assert (settings["OMP_NUM_THREADS"], settings["MKL_NUM_THREADS"]) == (str(threads), str(threads))


def test_a_replica_is_given_only_what_other_roles_are_not(tmp_path: Path) -> None:
    config = load(None, {"model": write_tiny_llama(tmp_path / "tiny"), "engine.threads": 3, "decode_engine": {"threads": 4}})
    own = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    roles: tuple[Role, ...] = ("router", "prefill", "decode")
    assert [own_environment(config, role) for role in roles] == [{}, {}, {"runtime_env": {"env_vars": own}}]
