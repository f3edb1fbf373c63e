"""How every benchmark's command begins and ends."""

import json
import os
import signal
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from benchmarks import decode_throughput, fairness, layerwise, prefix_routing
from benchmarks.errors import NotMeasured
from benchmarks.measurement import JsonFile, Measurement, numbers
from benchmarks.paired import Machine, Verdict
from benchmarks.router_cost import __main__ as router_cost

MET, MISSED = Verdict(what="x", measured=1.0, at_most=2.0), Verdict(what="x", measured=3.0, at_most=2.0)


class Report(BaseModel):
    machine: Machine
    found: list[str]
    judged: list[Verdict]

    def verdicts(self) -> list[Verdict]:
        return self.judged


@pytest.fixture(autouse=True)
def _own_signals() -> object:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def ended(tmp_path: Path, *judged: Verdict, during: BaseException | int | None = None, errors: tuple[str, ...] = ()) -> Result:
    """A whole command that finds one thing, during which an exception or a signal comes."""

    def run(json_file: JsonFile = None) -> None:
        measurement = Measurement("name")
        found: list[str] = []
        with measurement.running():
            found.append("first")
            if isinstance(during, int):
                os.kill(os.getpid(), during)
            elif during is not None:
                raise during
            found.append("second")
        measurement.count_errors(errors)
        report = Report(machine=measurement.machine, found=found, judged=list(judged))
        measurement.end(report, lambda report: f"shown: {report.found}", json_file)

    app = typer.Typer()
    app.command()(run)
    return CliRunner().invoke(app, ["--json", str(tmp_path / "report.json")])


@pytest.mark.parametrize(("judged", "status"), [((MET, MET), 0), ((MET, MISSED), 1), ((), 0)])
def test_the_status_says_whether_the_targets_were_met(tmp_path: Path, judged: tuple[Verdict, ...], status: int) -> None:
    result = ended(tmp_path, *judged)
    assert result.exit_code == status
    assert "shown: ['first', 'second']" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["found"] == ["first", "second"]


@pytest.mark.parametrize(
    ("during", "said"),
    [
        (NotMeasured("no cluster"), "no cluster"),
        (KeyboardInterrupt(), "interrupted"),
        (signal.SIGTERM, "interrupted"),
    ],
)
def test_what_was_found_before_it_ended_is_kept(tmp_path: Path, during: BaseException | int, said: str) -> None:
    result = ended(tmp_path, MET, during=during)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"name: {said}"
    assert json.loads((tmp_path / "report.json").read_text())["found"] == ["first"]


def test_failed_requests_meet_no_target(tmp_path: Path) -> None:
    result = ended(tmp_path, MET, errors=("timeout", "cut"))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "name: 2 requests failed, the first: timeout"


def test_a_bug_is_no_result(tmp_path: Path) -> None:
    result = ended(tmp_path, MET, during=ZeroDivisionError("ours"))
    assert isinstance(result.exception, ZeroDivisionError)
    assert not (tmp_path / "report.json").exists()


def test_a_busy_machine_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    result = ended(tmp_path, MET)
    assert result.stderr.splitlines()[0].startswith("the machine is busy (load 3.0)")
    assert json.loads((tmp_path / "report.json").read_text())["machine"]["load"] == 3.0


def test_numbers_of_an_option() -> None:
    assert numbers("--streams", "1, 8") == (1, 8)
    for text in ("", "1,x", "0", "4,-1"):
        with pytest.raises(typer.BadParameter, match="--streams"):
            numbers("--streams", text)


@pytest.mark.parametrize("module", [decode_throughput, fairness, layerwise, prefix_routing, router_cost])
def test_every_comparison_takes_a_model_settings_and_a_file(module: object) -> None:
    app = typer.Typer()
    app.command()(module.run)  # type: ignore[attr-defined]
    parameters = {name for each in typer.main.get_command(app).params for name in each.opts}
    assert {"--model", "--set", "--json"} <= parameters
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
