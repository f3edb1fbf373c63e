"""What the comparison of decode speeds found: rates out of times, data and a table. Pure."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.completions import Answer
from benchmarks.errors import NotMeasured
from benchmarks.paired import Machine, Paired, Verdict

TARGETS = {1: 1.7, 8: 2.5}
"""Streams → how many times as fast as `generate` the cluster has to be."""


class SideFailed(NotMeasured):
    """One side gave no usable answer: there is nothing to compare."""


class StreamsReport(BaseModel):
    """All rounds with so many streams. `ours` is the cluster, `theirs` generate; tokens/s of all streams together."""

    model_config = ConfigDict(frozen=True)

    streams: int
    tokens_per_second: Paired


class DecodeReport(BaseModel):
    """The whole comparison."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    model: str
    dtype: str
    threads: int
    input_tokens: int
    output_tokens: int
    streams: list[StreamsReport]

    def verdicts(self) -> list[Verdict]:
        """The targets that this run says something about."""
        return [
            Verdict(
                what=f"{one.streams} streams: tokens/s, cluster / generate",
                measured=one.tokens_per_second.ratio,
                at_least=TARGETS[one.streams],
            )
            for one in self.streams
            if one.streams in TARGETS
        ]


def together_tokens_per_second(answers: Sequence[Answer]) -> float:
    """The rate of all streams together while every one of them decodes: from the last stream's second event (its first token
    is prefill's) to the first stream's end. Raises SideFailed when there was no such time."""
    for answer in answers:
        if answer.error is not None:
            raise SideFailed(f"the cluster: {answer.error}")
        if len(answer.event_s) < 3:
            raise SideFailed("the cluster: an answer of fewer than three events has no rate; ask for more tokens")
    start_s, end_s = max(answer.event_s[1] for answer in answers), min(answer.event_s[-1] for answer in answers)
    if end_s <= start_s:
        raise SideFailed("the streams never decoded all at once; ask for more tokens")
    tokens = sum(sum(start_s < at_s <= end_s for at_s in answer.event_s) * answer.tokens_per_event for answer in answers)
    return tokens / (end_s - start_s)


def batch_tokens_per_second(token_s: Sequence[float], streams: int) -> float:
    """generate's rate over the whole batch, from its second token, as above, to its last."""
    if len(token_s) < 3:
        raise SideFailed("generate: fewer than three tokens have no rate; ask for more")
    return streams * (len(token_s) - 2) / (token_s[-1] - token_s[1])


def render(report: DecodeReport) -> RenderableType:
    """For a terminal."""
    shape = f"{report.input_tokens} in / {report.output_tokens} out, {report.threads} thread(s)"
    title = Text(f"decode of {report.model}, {report.dtype}, {shape}: tokens/s, medians", style="italic")
    table = Table()
    for column in ("streams", "cluster", "generate", "ratio (smallest-largest)"):
        table.add_column(column, justify="right")
    for one in report.streams:
        rate = one.tokens_per_second
        ratio = "-" if rate.ratio is None else f"{rate.ratio:.2f} ({rate.smallest_ratio:.2f}-{rate.largest_ratio:.2f})"
        table.add_row(str(one.streams), f"{rate.our_median:.1f}", f"{rate.their_median:.1f}", ratio)
    return Group(title, table, *(Text(str(verdict)) for verdict in report.verdicts()))
