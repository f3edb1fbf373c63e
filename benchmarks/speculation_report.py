"""What speculation is worth, as data and as a table. Pure."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.paired import Machine, Paired, Verdict
from benchmarks.quantiles import median
from benchmarks.speculation_tasks import COPY, ORDINARY

COPY_AT_LEAST = 1.5
ORDINARY_AT_LEAST = 0.97


class TaskReport(BaseModel):
    """One task with so many streams. `ours` speculates, `theirs` does not; tokens/s of one user, the mean over the streams."""

    model_config = ConfigDict(frozen=True)

    task: str
    kind: str
    streams: int
    tokens_per_second: Paired
    tokens: int
    """Answered by the side that speculates, in all rounds."""
    drafted: int
    """Tokens guessed in all rounds."""
    accepted: int
    """Of them, those that were right."""


class SpeculationReport(BaseModel):
    """The whole comparison."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    model: str
    dtype: str
    threads: int
    speculation: str
    draft_tokens: int
    tasks: list[TaskReport]

    def verdicts(self) -> list[Verdict]:
        """Copying must be worth it, and none of the others cost: its slowest task counts. Each for one user alone."""
        alone = [task for task in self.tasks if task.streams == 1 and task.tokens_per_second.ratio is not None]
        copying = [task.tokens_per_second.ratio or 0.0 for task in alone if task.kind == COPY]
        ordinary = [task.tokens_per_second.ratio or 0.0 for task in alone if task.kind == ORDINARY]
        found = []
        if copying:
            what = "copy-heavy prompts, median: tokens/s of a user, with speculation / without"
            found.append(Verdict(what=what, measured=median(copying), at_least=COPY_AT_LEAST))
        if ordinary:
            what = "ordinary prompts, the slowest: tokens/s of a user, with speculation / without"
            found.append(Verdict(what=what, measured=min(ordinary), at_least=ORDINARY_AT_LEAST))
        return found


def render(report: SpeculationReport) -> RenderableType:
    """For a terminal."""
    how = f"{report.speculation}, up to {report.draft_tokens} drafts, {report.dtype}, {report.threads} thread(s)"
    title = Text(f"speculation on {report.model}: {how}; tokens/s of a user, medians", style="italic")
    table = Table()
    for column in ("task", "kind"):
        table.add_column(column)
    for column in ("streams", "with", "without", "ratio (smallest-largest)", "drafted", "accepted", "accepted/token"):
        table.add_column(column, justify="right")
    for task in report.tasks:
        table.add_row(task.task, task.kind, str(task.streams), *_cells(task))
    return Group(title, table, *(Text(str(verdict)) for verdict in report.verdicts()))


def _cells(task: TaskReport) -> Sequence[str]:
    rate = task.tokens_per_second
    ratio = "-" if rate.ratio is None else f"{rate.ratio:.2f} ({rate.smallest_ratio:.2f}-{rate.largest_ratio:.2f})"
    share = task.accepted / task.tokens if task.tokens else 0.0
    counts = (f"{task.drafted:,}", f"{task.accepted:,}", f"{share:.2f}")
    return f"{rate.our_median:.1f}", f"{rate.their_median:.1f}", ratio, *counts
