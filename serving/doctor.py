"""`serval doctor`: what this machine offers, each with a verdict and what it means for Serval."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    """Serval runs, with less than it could have."""
    MISSING = "missing"
    """What needs it does not work; `meaning` says what that is."""


STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.MISSING: "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for. `required`: Serval cannot run without it."""

    group: str
    name: str
    verdict: Verdict
    found: str
    meaning: str
    required: bool = False


def doctor(as_json: bool) -> int:
    """Prints every finding. The exit status is 1 when something that Serval cannot run without is missing."""
    from serving.doctor_checks import examine

    console = Console(stderr=True)
    with console.status("looking around"):
        findings = examine()
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(findings)
    return int(any(finding.required and finding.verdict is Verdict.MISSING for finding in findings))


def _print(findings: Iterable[Finding]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "", "found", "what it means"):
        table.add_column(column, overflow="fold")
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row(Text(group, style="bold"))
        verdict = Text(finding.verdict, style=STYLES[finding.verdict])
        table.add_row(Text(f"  {finding.name}"), verdict, Text(finding.found), Text(finding.meaning))
    Console().print(table)
