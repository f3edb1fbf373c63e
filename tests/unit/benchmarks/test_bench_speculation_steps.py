"""Speculation measured in steps: on a tiny model both sides answer alike."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import speculation_steps
from benchmarks.speculation_report import SpeculationReport
from benchmarks.speculation_tasks import COPY, ORDINARY, Task
from engine.tiny import write_tiny_llama

TASKS = (Task("again", COPY, "abcabcabcabc" * 4, 24), Task("drawn", ORDINARY, "What is it?", 24, 0.8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_both_sides_answer_alike(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation_steps, "TASKS", TASKS)
    app = typer.Typer()
    app.command()(speculation_steps.run)
    arguments = ["--model", str(folder), "--dtype", "float32", "--rounds", "2", "--json", str(tmp_path / "report.json")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception  # a tiny model may meet no target
    report = SpeculationReport.model_validate_json((tmp_path / "report.json").read_text())
    assert [(task.task, task.tokens) for task in report.tasks] == [("again", 48), ("drawn", 48)]
    for task in report.tasks:
        assert task.accepted <= task.drafted
        assert len(task.tokens_per_second.ours) == 2
        assert min(task.tokens_per_second.ours + task.tokens_per_second.theirs) > 0
