"""What one tenant's flood did to another's latency. Pure."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table

from benchmarks.paired import Machine, Verdict
from benchmarks.quantiles import median, percentile

Kind = Literal["alone", "at its limit", "flood", "flood without a limit"]
KINDS: tuple[Kind, ...] = ("alone", "at its limit", "flood", "flood without a limit")
MOST = 1.10
FEWEST_SAMPLES = 100
"""Below, a 99th percentile is one request's."""


class Phase(BaseModel):
    """One stretch of time. The other tenant sends at its own pace; `time_to_first_token_s` is its."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    seconds: float
    time_to_first_token_s: list[float]
    errors: list[str]
    offender: dict[str, int]
    """What became of the offender's requests: HTTP status or error, and `sent`."""


class FairnessReport(BaseModel):
    """All phases, in the order in which they were measured: each round has every kind once."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    workers: int
    input_tokens: int
    output_tokens: int
    rate: float
    """The measured tenant's requests per second."""
    limit_per_minute: int
    times: int
    phases: list[Phase]

    def samples(self, kind: Kind) -> list[float]:
        return [sample for phase in self.phases if phase.kind == kind for sample in phase.time_to_first_token_s]

    def percentile_s(self, kind: Kind, percent: float) -> float | None:
        samples = self.samples(kind)
        return percentile(samples, percent) if samples else None

    def ratio(self, kind: Kind, base: Kind = "alone", percent: float = 99) -> float | None:
        """Of percentiles over all rounds; None where there are too few samples for one."""
        ours, theirs = self.percentile_s(kind, percent), self.percentile_s(base, percent)
        if ours is None or not theirs or min(len(self.samples(kind)), len(self.samples(base))) < FEWEST_SAMPLES:
            return None
        return ours / theirs

    def round_ratios(self, kind: Kind, base: Kind = "alone", percent: float = 99) -> list[float]:
        """The same within each round: how much the rounds differ."""
        pairs = zip(self._of_rounds(kind, percent), self._of_rounds(base, percent), strict=False)
        return [ours / theirs for ours, theirs in pairs]

    def _of_rounds(self, kind: Kind, percent: float) -> list[float]:
        samples = [phase.time_to_first_token_s for phase in self.phases if phase.kind == kind]
        return [percentile(each, percent) for each in samples if each]

    @property
    def errors(self) -> list[str]:
        """Of the measured tenant: it keeps its limits, so it should see none."""
        return [error for phase in self.phases for error in phase.errors]

    def verdicts(self) -> list[Verdict]:
        what = f"p99 TTFT beside a tenant at {self.times} times its limit"
        return [
            Verdict(what=f"{what} / alone", measured=self.ratio("flood"), at_most=MOST),
            Verdict(what=f"{what} / beside one at its limit", measured=self.ratio("flood", "at its limit"), at_most=MOST),
        ]


def render(report: FairnessReport) -> RenderableType:
    title = (
        f"TTFT of a tenant at {report.rate:g} requests/s beside another, {report.workers} workers, "
        f"{report.input_tokens} + {report.output_tokens} tokens"
    )
    table = Table(title=title)
    for column in ("the other", "samples", "p50 ms", "p99 ms", "p99 / alone", "in single rounds", "the other's requests"):
        table.add_column(column, justify="left" if column == "the other" else "right")
    for kind in KINDS:
        samples = report.samples(kind)
        if samples:
            p50, p99 = (f"{1000 * percentile(samples, percent):.1f}" for percent in (50, 99))
            table.add_row(_name(report, kind), str(len(samples)), p50, p99, *_ratios(report, kind), _offender(report, kind))
    return Group(table, *(str(verdict) for verdict in report.verdicts()))


def _name(report: FairnessReport, kind: Kind) -> str:
    limit = f"{report.limit_per_minute}/min"
    return {"at its limit": f"at its limit of {limit}", "flood": f"at {report.times} times {limit}"}.get(kind, kind)


def _ratios(report: FairnessReport, kind: Kind) -> tuple[str, str]:
    ratio, rounds = report.ratio(kind), report.round_ratios(kind)
    spread = f"{min(rounds):.2f} .. {median(rounds):.2f} .. {max(rounds):.2f}" if rounds else ""
    return (f"{ratio:.2f}" if ratio is not None else "-"), spread


def _offender(report: FairnessReport, kind: Kind) -> str:
    phases = [phase for phase in report.phases if phase.kind == kind]
    seconds = sum(phase.seconds for phase in phases)
    names = sorted({name for phase in phases for name in phase.offender})
    return ", ".join(f"{sum(phase.offender.get(name, 0) for phase in phases) / seconds:.1f}/s {name}" for name in names)
