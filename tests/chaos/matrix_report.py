"""What the matrix found: as JSON with every trial in it, and as tables to read. Pure, but for the two files."""

import dataclasses
import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_cells import Cell, Fault, State, Victim
from matrix_result import Trial

from benchmarks.paired import Machine
from benchmarks.quantiles import percentile


@dataclass(frozen=True)
class CellReport:
    """All trials of one cell together. `wrong`: why the cell failed; empty when it passed."""

    cell: Cell
    trials: tuple[Trial, ...]
    not_run: str = ""

    @property
    def wrong(self) -> list[str]:
        if not self.trials:
            return [f"not run: {self.not_run}"]
        return [wrong for trial in self.trials for wrong in trial.wrong]

    def summary(self) -> dict[str, Any]:
        outcomes: Counter[str] = Counter()
        for trial in self.trials:
            outcomes.update(trial.outcomes)
        return {
            "victim": self.cell.victim,
            "state": self.cell.state,
            "fault": self.cell.fault,
            "passed": not self.wrong,
            "trials": len(self.trials),
            "hits": sum(trial.hits for trial in self.trials),
            "outcomes": dict(outcomes),
            "recover_s": _spread([second for trial in self.trials for second in trial.recover_s]),
            "whole_s": _spread([trial.whole_s for trial in self.trials if trial.whole_s is not None]),
            "balanced_s": _spread([trial.balanced_s for trial in self.trials if trial.balanced_s is not None]),
            "late_s": max((trial.late_s for trial in self.trials), default=0.0),
            "leaked": [leak for trial in self.trials for leak in trial.leaked],
            "wrong": self.wrong,
        }


def write(folder: Path, reports: Sequence[CellReport], seconds: float, options: dict[str, Any]) -> None:
    """matrix.json and matrix.md."""
    head = {"commit": commit(), "machine": Machine.here().model_dump(), "seconds": round(seconds, 1), "options": options}
    body = {
        **head,
        "cells": [report.summary() for report in reports],
        "trials": [_trial(trial) for report in reports for trial in report.trials],
    }
    (folder / "matrix.json").write_text(json.dumps(body, indent=1) + "\n")
    (folder / "matrix.md").write_text(markdown(reports, head))


def markdown(reports: Sequence[CellReport], head: dict[str, Any]) -> str:
    machine = head["machine"]
    ran = [report for report in reports if report.trials]
    passed = sum(not report.wrong for report in reports)
    lines = [
        "# Kill matrix",
        "",
        f"Commit {head['commit']}; {machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f}; "
        f"{head['seconds']:.0f} s; {head['options']}.",
        "",
        f"{passed} of {len(reports)} cells passed, {len(reports) - len(ran)} were not run; "
        f"{sum(len(report.trials) for report in ran)} trials, {sum(trial.hits for r in ran for trial in r.trials)} requests hit, "
        f"{sum(trial.bystanders for r in ran for trial in r.trials)} beside them.",
        "",
        table(reports),
    ]
    failed = [report for report in reports if report.wrong]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [f"- **{report.cell}**: {'; '.join(dict.fromkeys(report.wrong))[:600]}" for report in failed]
    return "\n".join(lines) + "\n"


def table(reports: Sequence[CellReport]) -> str:
    """One row per role and state, one column per fault: how the hits ended for their clients, and p50 / p99 of recovery."""
    by_cell = {report.cell: report for report in reports}
    lines = ["| hit | state | " + " | ".join(Fault) + " |", "| --- | --- |" + " --- |" * len(Fault)]
    for victim in Victim:
        for state in State:
            shown = [_shown(by_cell.get(Cell(victim, state, fault))) for fault in Fault]
            lines.append(f"| {victim} | {state} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def commit() -> str:
    """Of the tree that ran; with + where it differs from that."""
    folder = Path(__file__).parent
    name = _git(folder, "rev-parse", "--short", "HEAD")
    return name + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _shown(report: CellReport | None) -> str:
    if report is None:
        return "not asked for"
    if not report.trials:
        return "not run"
    summary = report.summary()
    outcomes = " + ".join(f"{count} {outcome}" for outcome, count in sorted(summary["outcomes"].items()))
    recovery = summary["recover_s"]
    times = f", {recovery['p50']:.2f} / {recovery['p99']:.2f} s" if recovery else ""
    return f"{'**failed** ' if report.wrong else ''}{outcomes or 'nothing'}{times}"


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"samples": len(seconds), "p50": round(percentile(seconds, 50), 4), "p99": round(percentile(seconds, 99), 4)}


def _trial(trial: Trial) -> dict[str, Any]:
    fields = dataclasses.asdict(trial)
    return fields | {"cell": str(trial.cell)}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() or ("unknown" if done.returncode else "")
