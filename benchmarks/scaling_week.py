"""What it is worth that pools scale: a week of load through simulated pools that scale, and through every split that stays.

The decision is the one that runs under Ray (planner.scaling), the load synthetic in the manner of public traces (planner.synthetic;
`serval plan --trace FILE --simulate` takes a real one), the pools simulated (planner.simulation).

    python -m benchmarks.scaling_week --json FILE
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.measurement import JsonFile, Measurement
from benchmarks.paired import Machine, Verdict
from benchmarks.terminal import progress_bar
from planner.comparison import Run, run_of, splits
from planner.scaling_config import PoolLimits, ScalingConfig
from planner.simulated_pools import Speed
from planner.simulation import Outcome, simulate
from planner.synthetic import week
from planner.trace import Arrival

SPEED = Speed(prompt_tokens_per_s=1500, step_s=0.02, step_s_per_request=0.001, kv_tokens=12_000, start_s=60)
CONFIG = ScalingConfig(prefill=PoolLimits(max=4), decode=PoolLimits(max=5), period_s=30, slo_ttft_s=15, slo_tokens_per_s=20)
LONGEST = 10_000, 2_000
"""Tokens of a prompt and of an answer: together they fit on a decode worker."""


class ScalingReport(BaseModel):
    """All runs of one load."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    requests: int
    decisions: int
    changes: int
    """Of a pool's desired size."""
    scaled: Run
    fixed: list[Run]

    @property
    def best(self) -> Run | None:
        """The cheapest split that stays and misses no more."""
        return min((run for run in self.fixed if run.missed <= self.scaled.missed), key=lambda run: run.gpu_hours, default=None)

    def verdicts(self) -> Sequence[Verdict]:
        cost = self.scaled.gpu_hours / self.best.gpu_hours if self.best is not None else None
        return [Verdict(what="GPU hours beside the best split that stays and misses no more", measured=cost, at_most=1.0)]


def run(
    days: Annotated[float, typer.Option(min=0.01, help="Of the week.")] = 7.0,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second on the mean.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Same seed, same week.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Compare SLO attainment and GPU hours of pools that scale with those of every split within the same limits that stays.

    Exit status: 0 when scaling costs no more than the best split that misses no more, 1 when it does, 2 when it could not be run.
    """
    measurement = Measurement("scaling_week", takes_time=False)
    done: list[ScalingReport] = []
    with measurement.running(), progress_bar() as bar:
        candidates = splits(CONFIG)
        progress = bar.add_task("runs of the load", total=1 + len(candidates))
        arrivals = [Arrival(one.time_s, min(one.isl, LONGEST[0]), min(one.osl, LONGEST[1])) for one in week(seed, rate, days)]
        least = CONFIG.prefill.min, CONFIG.decode.min
        outcome = simulate(arrivals, SPEED, CONFIG, *least, scale=True)
        fixed = []
        for split in candidates:
            bar.advance(progress)
            fixed.append(run_of(CONFIG, simulate(arrivals, SPEED, CONFIG, *split, scale=False), split))
        done.append(
            ScalingReport(
                machine=measurement.machine,
                requests=len(arrivals),
                decisions=len(outcome.records),
                changes=_changes(outcome),
                scaled=run_of(CONFIG, outcome, least),
                fixed=fixed,
            )
        )
    if not done:
        raise typer.Exit(2)
    measurement.end(done[0], render, json_file)


def render(report: ScalingReport) -> RenderableType:
    table = Table(title=f"{report.requests:,} requests, {report.changes} changes of size in {report.decisions:,} decisions")
    for column in ("prefill, decode", "missed the SLO", "GPU hours"):
        table.add_column(column, justify="right")
    table.add_row("scale", f"{report.scaled.missed:,}", f"{report.scaled.gpu_hours:,.0f}")
    for run in report.fixed:
        mark = " *" if run is report.best else ""
        table.add_row(f"{run.prefill}, {run.decode}{mark}", f"{run.missed:,}", f"{run.gpu_hours:,.0f}")
    return Group(table, Text("* the cheapest that stays and misses no more"), *(Text(str(one)) for one in report.verdicts()))


def _changes(outcome: Outcome) -> int:
    sizes = [(one.decision.prefill.desired, one.decision.decode.desired) for one in outcome.records]
    return sum((one[0] != other[0]) + (one[1] != other[1]) for one, other in pairwise(sizes))


if __name__ == "__main__":
    typer.run(run)
