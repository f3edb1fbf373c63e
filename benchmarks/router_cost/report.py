"""What was measured, and how it is shown. Pure."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table

from benchmarks.paired import Machine, Paired, Verdict
from benchmarks.quantiles import median, percentile

FIRST_TOKEN_P99_MS = 5.0


class Relay(BaseModel):
    """From a token's leaving the mock worker to its arrival at the client, in ms."""

    model_config = ConfigDict(frozen=True)

    first_p50_ms: float
    first_p99_ms: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, delays_s: Sequence[Sequence[float]]) -> "Relay":
        """`delays_s`: of each answer, token by token."""
        first = [answer[0] * 1e3 for answer in delays_s]
        every = [delay * 1e3 for answer in delays_s for delay in answer]
        return cls(
            first_p50_ms=percentile(first, 50),
            first_p99_ms=percentile(first, 99),
            p50_ms=percentile(every, 50),
            p99_ms=percentile(every, 99),
        )


class Phase(BaseModel):
    """One pass of all streams through one router."""

    model_config = ConfigDict(frozen=True)

    cpu_us_per_token: float
    tokens_per_s: float
    tokens_per_event: float
    relay: Relay


class Round(BaseModel):
    """One router's turn: flooded, then a token every so often per stream, then at half of the rate it had when flooded."""

    model_config = ConfigDict(frozen=True)

    flooded: Phase
    paced: Phase
    half_load: Phase


class StreamsReport(BaseModel):
    """One number of streams. `theirs` is empty where there is no peer."""

    model_config = ConfigDict(frozen=True)

    streams: int
    ours: list[Round]
    theirs: list[Round]

    def cpu(self) -> Paired | None:
        """Processor time per token, flooded."""
        return self._paired([(ours.flooded, theirs.flooded) for ours, theirs in self._rounds()])

    def paced_cpu(self) -> Paired | None:
        return self._paired([(ours.paced, theirs.paced) for ours, theirs in self._rounds()])

    def verdicts(self) -> list[Verdict]:
        """Targets: cheaper per token than the peer; the first token at half load not later than 5 ms."""
        first_ms = median([each.half_load.relay.first_p99_ms for each in self.ours])
        verdicts = [
            Verdict(what=self._what("first token's added p99 at half load, ms"), measured=first_ms, at_most=FIRST_TOKEN_P99_MS)
        ]
        if (cpu := self.cpu()) is not None:
            verdicts.append(
                Verdict(what=self._what("processor time per token, flooded, to smg's"), measured=cpu.ratio, at_most=1.0)
            )
        return verdicts

    def _what(self, what: str) -> str:
        return f"{self.streams} streams: {what}"

    def _rounds(self) -> list[tuple[Round, Round]]:
        return list(zip(self.ours, self.theirs, strict=False))

    def _paired(self, phases: list[tuple[Phase, Phase]]) -> Paired | None:
        if not phases:
            return None
        return Paired.of([ours.cpu_us_per_token for ours, _ in phases], [theirs.cpu_us_per_token for _, theirs in phases])


class CostReport(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    tokens: int
    pace_ms: float
    streams_per_worker: int
    peer: str | None
    streams: list[StreamsReport]

    def verdicts(self) -> list[Verdict]:
        return [verdict for each in self.streams for verdict in each.verdicts()]


def render(report: CostReport) -> RenderableType:
    table = Table(title=f"{report.tokens}-token streams; medians over the rounds")
    for column in (
        "streams",
        "router",
        "phase",
        "CPU us/token",
        "tokens/s",
        "tokens/event",
        "first p50, p99 ms",
        "token p50, p99 ms",
    ):
        table.add_column(column, justify="left" if column in ("router", "phase") else "right")
    for each in report.streams:
        for name, rounds in (("serval", each.ours), (report.peer or "", each.theirs)):
            for phase, words in (("flooded", "flooded"), ("paced", f"every {report.pace_ms:g} ms"), ("half_load", "half load")):
                if rounds:
                    table.add_row(str(each.streams), name, words, *_cells([getattr(one, phase) for one in rounds]))
        table.add_section()
    lines = [str(verdict) for verdict in report.verdicts()]
    for each in report.streams:
        for what, paired in (("flooded", each.cpu()), ("paced", each.paced_cpu())):
            if paired is not None and paired.ratio is not None:
                lines.append(
                    f"{each.streams} streams, {what}: processor time per token, serval / {report.peer}: {paired.ratio:.2f} "
                    f"({paired.smallest_ratio:.2f} to {paired.largest_ratio:.2f})"
                )
    return Group(table, *lines)


def _cells(phases: list[Phase]) -> list[str]:
    def middle(values: list[float]) -> float:
        return median(values)

    relays = [phase.relay for phase in phases]
    return [
        f"{middle([phase.cpu_us_per_token for phase in phases]):.1f}",
        f"{middle([phase.tokens_per_s for phase in phases]):,.0f}",
        f"{middle([phase.tokens_per_event for phase in phases]):.1f}",
        f"{middle([each.first_p50_ms for each in relays]):.2f}, {middle([each.first_p99_ms for each in relays]):.2f}",
        f"{middle([each.p50_ms for each in relays]):.2f}, {middle([each.p99_ms for each in relays]):.2f}",
    ]
