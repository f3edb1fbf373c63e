"""The week in small, through the command as it is called."""

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks import scaling_week


def test_it_tells_every_split_and_the_cheapest_that_misses_no_more(tmp_path: Path) -> None:
    app, file = typer.Typer(), tmp_path / "week.json"
    app.command()(scaling_week.run)
    result = CliRunner().invoke(app, ["--days", "0.1", "--rate", "0.5", "--json", str(file)])
    report = json.loads(file.read_text())
    assert {(run["prefill"], run["decode"]) for run in report["fixed"]} == {(p, d) for p in range(1, 5) for d in range(1, 6)}
    as_good = [run["gpu_hours"] for run in report["fixed"] if run["missed"] <= report["scaled"]["missed"]]
    is_cheaper = report["scaled"]["gpu_hours"] <= min(as_good)
    assert result.exit_code == (0 if is_cheaper else 1), result.output
    assert f"{report['requests']:,} requests" in result.output
    assert report["scaled"]["missed"] < report["fixed"][0]["missed"], "one of each is too few"
    assert report["decisions"] > 100 and 0 < report["changes"] < report["decisions"] / 5
