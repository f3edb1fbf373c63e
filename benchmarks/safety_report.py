"""What a run of benchmarks.safety_cost has found, and how it is shown."""

from collections.abc import Iterable, Sequence
from itertools import chain

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.interval import Interval
from benchmarks.paired import Machine, Paired, Verdict

MOST = 1.03


class Load(BaseModel):
    """One turn's requests: `streams` at once, each of so many tokens."""

    model_config = ConfigDict(frozen=True)

    streams: int
    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.streams} x {self.input_tokens} in, {self.output_tokens} out"


class Turn(BaseModel):
    """What one side needed for one turn."""

    model_config = ConfigDict(frozen=True)

    first_token_s: float
    """Mean over the requests."""
    token_s: float
    """From the first request to the last token, per token of all prompts and answers."""
    decode_s: float
    """From the first to the last token of an answer, per token; mean over the requests."""
    processor_s: float
    """Of both workers."""


QUANTITIES = {
    "time to first token": "first_token_s",
    "time per token, prompts and answers": "token_s",
    "decode, per token": "decode_s",
    "processor time of the workers": "processor_s",
}
WITH_TARGET = ("time to first token", "time per token, prompts and answers")


class LoadCost(BaseModel):
    """Round by round, either side's turn."""

    model_config = ConfigDict(frozen=True)

    load: Load
    safe: list[Turn]
    unsafe: list[Turn]


class SafetyReport(BaseModel):
    model_config = ConfigDict(frozen=True)

    machine: Machine
    is_control: bool
    """Both sides are safe: the ratios say what this machine can tell."""
    loads: list[LoadCost]
    digest_share: float | None
    """Seconds that the safe cluster's transfer threads spent on digests and on the copy they are taken with, less those that the
    unsafe one spent on its copy, per second that the safe engines computed."""

    def pairs(self, what: str, loads: Iterable[LoadCost] | None = None) -> Paired:
        """Safe beside unsafe, of all loads unless told which. Raises ValueError when there are none."""
        chosen = list(self.loads if loads is None else loads)
        safe, unsafe = (_values(QUANTITIES[what], (getattr(cost, side) for cost in chosen)) for side in ("safe", "unsafe"))
        return Paired.of(safe, unsafe)

    def verdicts(self) -> list[Verdict]:
        """By the medians over all loads: the intervals say what they are worth."""
        return [
            Verdict(what=f"{what}, safe / unsafe", measured=self.pairs(what).ratio if self._is_measured else None, at_most=MOST)
            for what in WITH_TARGET
        ]

    @property
    def _is_measured(self) -> bool:
        return any(cost.safe for cost in self.loads)


def _values(quantity: str, sides: Iterable[Sequence[Turn]]) -> list[float]:
    return [getattr(turn, quantity) for turn in chain.from_iterable(sides)]


def render(report: SafetyReport) -> RenderableType:
    """For a terminal."""
    table = Table()
    for column in ("", "load", "safe", "unsafe", "ratio, median (95 %)"):
        table.add_column(column, justify="right" if column != "" else "left")
    measured = [cost for cost in report.loads if cost.safe]
    for what in QUANTITIES:
        for name, loads in [*((str(cost.load), [cost]) for cost in measured), ("all", measured)]:
            if loads:
                _add(table, what, name, report.pairs(what, loads))
        table.add_section()
    share = "unknown" if report.digest_share is None else f"{report.digest_share:.2%}"
    title = "both sides safe: what this machine can tell" if report.is_control else "digests, leases, quarantine on / off"
    lines = [f"digests, of the time that engines compute: {share}", *map(str, report.verdicts())]
    return Group(Text(title, style="italic"), table, Text("\n".join(lines)))


def _add(table: Table, what: str, name: str, pairs: Paired) -> None:
    interval = Interval.of(pairs)
    ratio = "-" if pairs.ratio is None else f"{pairs.ratio:.3f}"
    ours, theirs = (f"{seconds * 1e3:.2f} ms" for seconds in (pairs.our_median, pairs.their_median))
    table.add_row(what, name, ours, theirs, ratio if interval is None else str(interval))
