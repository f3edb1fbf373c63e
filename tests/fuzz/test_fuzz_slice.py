"""A small slice of the fuzzing in seconds; `make chaos-fuzz` sends 100,000 inputs."""

from pathlib import Path

import pytest
from fuzz_parsers import PARSERS, fuzz_by_change, fuzz_by_hypothesis

SEED = 1


def test_parsers_by_change() -> None:
    assert set(fuzz_by_change(5000, SEED)) == {parser.name for parser in PARSERS}


def test_parsers_by_hypothesis() -> None:
    assert all(fuzz_by_hypothesis(250, SEED).values())


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_transport() -> None:
    from fuzz_transport import fuzz_metadata, fuzz_notifications

    assert fuzz_notifications(400, SEED)["notifications over NIXL"] > 200
    assert fuzz_metadata(100, SEED)["NIXL metadata"] > 50


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_ports(tmp_path: Path) -> None:
    from fuzz import fuzz_network
    from fuzz_mutate import MODEL

    from engine.tiny import write_tiny_llama

    tally, _ = fuzz_network(200, SEED, write_tiny_llama(tmp_path / MODEL, layers=2), tmp_path / "log", warm_up=40)
    assert tally.total > 150
