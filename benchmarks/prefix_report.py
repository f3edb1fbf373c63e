"""What the comparison of placement policies found, as data and as a table. Pure."""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.completions import Answer
from benchmarks.conversations import TraceShape
from benchmarks.errors import NotMeasured
from benchmarks.paired import Machine, Paired, Verdict
from benchmarks.quantiles import Spread
from benchmarks.scrape import Samples, total

OURS, THEIRS = "prefix_aware", "round_robin"
LEAST_FOUND = 0.9
"""Of the prompt tokens that were asked before. No policy finds more than all of them, and a first answer may still be open."""
MOST_TTFT_RATIO = 1.0


class Pass(BaseModel):
    """One policy's pass over the trace in one round."""

    model_config = ConfigDict(frozen=True)

    answered: int
    errors: list[str]
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV no worker had to compute, as told with each answer."""
    prefill_hit_rate: float
    """Share of the prompt tokens that were looked up in prefill workers' prefix caches and found there."""
    decode_hit_rate: float
    computed_here: float
    """Prompts that decode workers computed by themselves."""
    time_to_first_token: Spread
    duration_s: float

    @classmethod
    def of(cls, answers: Sequence[Answer], growth: Samples, duration_s: float) -> "Pass":
        """`growth`: by how much the workers' counters grew. Raises NotMeasured when nothing was answered."""
        good = [answer for answer in answers if answer.error is None]
        spread = Spread.of([answer.time_to_first_token_s for answer in good])
        if spread is None:
            raise NotMeasured(f"no request was answered: {answers[0].error if answers else 'none was sent'}")
        return cls(
            answered=len(good),
            errors=[answer.error for answer in answers if answer.error is not None],
            prompt_tokens=sum(answer.prompt_tokens for answer in good),
            cached_tokens=sum(answer.cached_tokens for answer in good),
            prefill_hit_rate=_hit_rate(growth, "prefill"),
            decode_hit_rate=_hit_rate(growth, "decode"),
            computed_here=total(growth, "serval_local_prefills_total", role="decode"),
            time_to_first_token=spread,
            duration_s=duration_s,
        )

    @property
    def hit_rate(self) -> float:
        """Share of all prompt tokens that nobody had to compute."""
        return self.cached_tokens / self.prompt_tokens


class PrefixReport(BaseModel):
    """The whole comparison. `ours` is prefix_aware, `theirs` round_robin."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    shape: TraceShape
    prefill_workers: int
    decode_workers: int
    concurrency: int
    ours: list[Pass]
    theirs: list[Pass]

    def paired(self) -> dict[str, Paired]:
        """Round by round, by what is compared."""

        def of(value: Callable[[Pass], float]) -> Paired:
            return Paired.of([value(one) for one in self.ours], [value(one) for one in self.theirs])

        return {
            "hit rate": of(lambda one: one.hit_rate),
            "hit rate at prefill": of(lambda one: one.prefill_hit_rate),
            "TTFT p50, s": of(lambda one: one.time_to_first_token.p50),
            "TTFT p90, s": of(lambda one: one.time_to_first_token.p90),
            "whole trace, s": of(lambda one: one.duration_s),
        }

    def verdicts(self) -> list[Verdict]:
        if not self.ours:
            return []
        paired = self.paired()
        found = paired["hit rate"].our_median * self.shape.prompt_tokens / self.shape.reusable_tokens
        return [
            Verdict(what="hit rate, prefix-aware / share of repeats", measured=found, at_least=LEAST_FOUND),
            *(
                Verdict(what=f"{name}, prefix-aware / round robin", measured=paired[name].ratio, at_most=MOST_TTFT_RATIO)
                for name in ("TTFT p50, s", "TTFT p90, s")
            ),
        ]

    @property
    def errors(self) -> list[str]:
        return [error for one in (*self.ours, *self.theirs) for error in one.errors]


def render(report: PrefixReport) -> RenderableType:
    """For a terminal."""
    shape = report.shape
    what = (
        f"{shape.systems} system prompts of {shape.system_tokens} tokens, {shape.users} users each, {shape.turns} turns: "
        f"{shape.requests} requests a round, {report.concurrency} conversations at a time; {report.prefill_workers} prefill, "
        f"{report.decode_workers} decode workers; {shape.reusable_tokens / shape.prompt_tokens:.0%} of prompt tokens are repeats"
    )
    table = Table()
    table.add_column("median of the rounds")
    for name in ("prefix-aware", "round robin", "ratio (smallest-largest)"):
        table.add_column(name, justify="right")
    for name, paired in report.paired().items() if report.ours else ():
        ratio = "-" if paired.ratio is None else f"{paired.ratio:.2f} ({paired.smallest_ratio:.2f}-{paired.largest_ratio:.2f})"
        table.add_row(name, f"{paired.our_median:.3f}", f"{paired.their_median:.3f}", ratio)
    return Group(Text(what, style="italic"), table, *(Text(str(verdict)) for verdict in report.verdicts()))


def _hit_rate(growth: Samples, role: str) -> float:
    asked = total(growth, "serval_prefix_cache_queries_total", role=role)
    return total(growth, "serval_prefix_cache_hits_total", role=role) / asked if asked else 0.0
