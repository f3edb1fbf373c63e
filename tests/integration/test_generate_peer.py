"""The peer process of the decode benchmark, on a tiny model: loads, answers, ends with its stdin."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cluster import environment
from engine.tiny import write_tiny_llama

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")
    command = [
        sys.executable,
        "-m",
        "benchmarks.generate_peer",
        "--model",
        str(folder),
        "--dtype",
        "bfloat16",
        "--threads",
        "1",
    ]
    asked = {"prompts": [[1, 2, 3], [4, 5, 6]], "new_tokens": 12}
    done = subprocess.run(
        command, input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=100, check=True, env=environment(1)
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_says_when_it_is_ready_and_answers_each_request_once(answers: list[dict]) -> None:
    assert answers[0] == {"ready": True}
    assert len(answers) == 2


def test_every_token_has_its_time_and_none_ends_early(answers: list[dict]) -> None:
    times = answers[1]["token_s"]
    assert len(times) == 12
    assert times == sorted(times) and times[0] > 0
