"""The model of the landing protocol is that of the code, and holds within small bounds (`make model`: larger ones)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvtransfer.landing import TRANSITIONS

FOLDER = Path(__file__).parents[2] / "model"


def test_its_slot_moves_along_the_same_edges() -> None:
    text = (FOLDER / "kv_landing.pml").read_text()
    edges = re.findall(r"move\(([A-Z]+), (\w+), ([A-Z]+)\)", text)
    assert len(edges) == len(set(edges))
    assert {tuple(word.lower() for word in edge) for edge in edges} == {
        (state, event, after) for (state, event), after in TRANSITIONS.items()
    }


@pytest.mark.skipif(shutil.which("spin") is None or shutil.which("cc") is None, reason="needs spin and a C compiler")
def test_it_holds_and_its_mutants_do_not() -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "check.py"), "--tiny"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violated, as it must be" in done.stdout and " 0 failed" in done.stdout
