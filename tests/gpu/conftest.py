"""Tests of what a GPU computes. Without one they are skipped, and say so."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU"))


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda")
