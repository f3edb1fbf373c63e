"""What more load than the cluster can take does to those who are let in, and to those who are not. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.paired import Machine, Verdict
from benchmarks.quantiles import percentile

Shedding = Literal["predicted_wait", "line_length"]
LEAST_GOODPUT = 0.9
MOST_REFUSAL_S = 0.1
"""Of the median: a refusal is a matter of milliseconds, and of some more where client and cluster share busy cores."""


class Objective(BaseModel):
    """What an answer is worth something for."""

    model_config = ConfigDict(frozen=True)

    ttft_s: float
    tokens_per_second: float


class Ask(BaseModel):
    """One request. Latency counts from when it was due."""

    model_config = ConfigDict(frozen=True)

    due_s: float
    """From the start of its phase."""
    late_s: float
    """How long after that the client sent it."""
    ttft_s: float | None = None
    tokens_per_second: float | None = None
    error: str | None = None
    ended_s: float = 0.0
    """From sending to the last byte."""

    def is_good(self, objective: Objective) -> bool:
        if self.error is not None or self.ttft_s is None or self.tokens_per_second is None:
            return False
        return self.ttft_s <= objective.ttft_s and self.tokens_per_second >= objective.tokens_per_second

    @property
    def is_refused(self) -> bool:
        return is_refusal(self.error)


class Phase(BaseModel):
    """A stretch of time with `factor` times the capacity offered. `is_after`: right behind an overload."""

    model_config = ConfigDict(frozen=True)

    factor: float
    capacity: float
    """Requests per second that a closed loop got answered just before."""
    seconds: float
    is_after: bool
    asks: list[Ask]
    sheds: dict[str, float]
    """By the router's reason; of the whole stretch, where the next phase followed without a pause."""

    def goodput(self, objective: Objective) -> float:
        """Requests within the objective, per second."""
        return sum(ask.is_good(objective) for ask in self.asks) / self.seconds

    def share(self, objective: Objective) -> float:
        """Goodput by the capacity at that time."""
        return self.goodput(objective) / self.capacity

    @property
    def refusal_s(self) -> list[float]:
        """How long each took that was refused at the door or in the line."""
        return [ask.ended_s for ask in self.asks if ask.is_refused]

    def recovered_s(self, objective: Objective, window_s: float) -> float | None:
        """When the first window began in which every request was good; None: it never did."""
        for number in range(int(self.seconds // window_s)):
            inside = [ask for ask in self.asks if number * window_s <= ask.due_s < (number + 1) * window_s]
            if inside and all(ask.is_good(objective) for ask in inside):
                return number * window_s
        return None


class Side(BaseModel):
    """All phases of one way of shedding."""

    model_config = ConfigDict(frozen=True)

    shedding: Shedding
    phases: list[Phase]

    def of(self, factor: float, *, is_after: bool = False) -> Phase | None:
        return next((phase for phase in self.phases if (phase.factor, phase.is_after) == (factor, is_after)), None)


class OverloadReport(BaseModel):
    model_config = ConfigDict(frozen=True)

    machine: Machine
    input_tokens: int
    output_tokens: int
    longest_wait_s: float
    objective: Objective
    window_s: float
    sides: list[Side]

    def goodput_ratio(self, side: Side, factor: float) -> float | None:
        """Of goodput at `factor` times the capacity over that at the capacity, each as a share of the capacity at its time."""
        over, base = side.of(factor), side.of(1.0)
        if over is None or base is None or not base.goodput(self.objective):
            return None
        return over.share(self.objective) / base.share(self.objective)

    def verdicts(self) -> list[Verdict]:
        """Of shedding as it is by default."""
        side = next((side for side in self.sides if side.shedding == "predicted_wait"), None)
        if side is None:
            return []
        ratios = [(factor, self.goodput_ratio(side, factor)) for factor in (2.0, 4.0)]
        refusals = [seconds for phase in side.phases for seconds in phase.refusal_s]
        took = percentile(refusals, 50) if refusals else None
        after = next((phase for phase in side.phases if phase.is_after), None)
        recovered = after.recovered_s(self.objective, self.window_s) if after is not None else None
        return [
            *(
                Verdict(what=f"goodput at {factor:g} / at 1 times", measured=ratio, at_least=LEAST_GOODPUT)
                for factor, ratio in ratios
            ),
            Verdict(what="seconds that a refusal took, p50", measured=took, at_most=MOST_REFUSAL_S),
            Verdict(what="seconds to recover", measured=recovered, at_most=self.longest_wait_s + self.window_s),
        ]


def is_refusal(error: str | None) -> bool:
    """The kinds that benchmarks/completions.py gives to what the door says."""
    return error is not None and error.startswith(("HTTP 503", "HTTP 429"))


def render(report: OverloadReport) -> RenderableType:
    """For a terminal."""
    objective = report.objective
    title = (
        f"requests of {report.input_tokens} + {report.output_tokens} tokens; first token"
        f" within {objective.ttft_s:.2f} s, {objective.tokens_per_second:.1f} tokens/s; {report.longest_wait_s:g} s may be waited"
    )
    tables = [_table(report, side) for side in report.sides]
    return Group(Text(title, style="italic"), *tables, *(str(verdict) for verdict in report.verdicts()))


def _table(report: OverloadReport, side: Side) -> Table:
    table = Table(title=f"shedding: {side.shedding} (TTFT, refusal: p50, p99)")
    columns = ("offered", "capacity/s", "asked", "goodput/s", "/ capacity", "/ at 1x", "answered", "not answered")
    for column in (*columns, "TTFT s", "refusal ms", "late p99 ms", "sheds"):
        table.add_column(column, justify="right")
    for phase in side.phases:
        answered = [ask.ttft_s for ask in phase.asks if ask.error is None and ask.ttft_s is not None]
        ratio = report.goodput_ratio(side, phase.factor) if not phase.is_after else None
        recovered = phase.recovered_s(report.objective, report.window_s) if phase.is_after else None
        after = f", recovered after {recovered:g} s" if recovered is not None else ", not recovered" if phase.is_after else ""
        table.add_row(
            f"{phase.factor:g}x{after}",
            f"{phase.capacity:.2f}",
            str(len(phase.asks)),
            f"{phase.goodput(report.objective):.2f}",
            f"{phase.share(report.objective):.2f}",
            "-" if ratio is None else f"{ratio:.2f}",
            str(len(answered)),
            ", ".join(f"{count} {error}" for error, count in _errors(phase.asks)) or "0",
            _two(answered, 1, 2),
            _two(phase.refusal_s, 1000, 1),
            f"{1000 * percentile([ask.late_s for ask in phase.asks], 99):.1f}" if phase.asks else "-",
            ", ".join(f"{count:g} {reason}" for reason, count in sorted(phase.sheds.items())),
        )
    return table


def _errors(asks: Sequence[Ask]) -> list[tuple[str, int]]:
    return Counter(ask.error for ask in asks if ask.error is not None).most_common()


def _two(samples: Sequence[float], times: float, digits: int) -> str:
    """p50 and p99."""
    return ", ".join(f"{times * percentile(samples, percent):.{digits}f}" for percent in (50, 99)) if samples else "-"
