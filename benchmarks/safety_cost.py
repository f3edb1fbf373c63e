"""What safety costs: digests, leases and quarantine on against off, in one run.

Two clusters (one prefill, one decode worker each) answer the same prompts in turns. One is as it is by default; the other verifies
nothing (`transfer.digest`) and uses a landing slot again without waiting for proof that nobody writes to it
(`decode.fence_slots`), which is for this measurement only. Every prompt moves.

    python -m benchmarks.safety_cost --isl 512 --streams 4 --rounds 20 --json FILE
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from random import Random
from statistics import fmean, stdev
from typing import Annotated

import httpx
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.cluster import Cluster, Place, read_settings, vocabulary_size
from benchmarks.completions import CompletionRequest, complete
from benchmarks.errors import NotMeasured
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings
from benchmarks.paired import Machine, Paired, Verdict, order
from benchmarks.scrape import Scraper, total
from benchmarks.terminal import progress_bar
from benchmarks.workload import token_prompt

ANSWER_TIMEOUT_S = 300.0
MOST = 1.03
OFF = ("transfer.digest=false", "decode.fence_slots=false")
STUDENT_95 = {5: 2.78, 10: 2.26, 15: 2.14, 20: 2.09, 30: 2.05, 60: 2.0}
"""Two-sided 95 % quantiles of Student's t by the number of rounds; the next smaller one is used, which is the wider."""


class Interval(BaseModel):
    """The ratio safe / unsafe as its geometric mean over the rounds, and where it lies with 95 % confidence if rounds are
    independent and their log ratios normal (Student's t)."""

    model_config = ConfigDict(frozen=True)

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, pairs: Paired) -> "Interval | None":
        """None for fewer than five rounds: too few to say."""
        logs = [math.log(ours / theirs) for ours, theirs in zip(pairs.ours, pairs.theirs, strict=True)]
        if len(logs) < min(STUDENT_95):
            return None
        t = STUDENT_95[max(rounds for rounds in STUDENT_95 if rounds <= len(logs))]
        mean, half = fmean(logs), t * stdev(logs) / math.sqrt(len(logs))
        return cls(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


class Cost(BaseModel):
    """One quantity on both sides, safe / unsafe."""

    model_config = ConfigDict(frozen=True)

    what: str
    pairs: Paired
    interval: Interval | None

    @classmethod
    def of(cls, what: str, safe: Sequence[float], unsafe: Sequence[float]) -> "Cost":
        pairs = Paired.of(safe, unsafe)
        return cls(what=what, pairs=pairs, interval=Interval.of(pairs))


class SafetyReport(BaseModel):
    model_config = ConfigDict(frozen=True)

    machine: Machine
    input_tokens: int
    output_tokens: int
    streams: int
    costs: list[Cost]
    digest_share: float | None
    """Seconds that the safe cluster's transfer threads spent on digests and on the copy they are taken with, less those that the
    unsafe one spent on its copy, per second that the safe engines computed."""

    def verdicts(self) -> list[Verdict]:
        """By the medians: the intervals say what they are worth."""
        return [Verdict(what=f"{cost.what}, safe / unsafe", measured=cost.pairs.ratio, at_most=MOST) for cost in self.costs]


class Sides:
    """Per round: mean time to the first token, and seconds for all tokens of all streams."""

    def __init__(self) -> None:
        self.first_token_s: dict[bool, list[float]] = {True: [], False: []}
        self.per_token_s: dict[bool, list[float]] = {True: [], False: []}

    async def measure(self, cluster: Cluster, is_safe: bool, prompts: Sequence[list[int]], output_tokens: int) -> None:
        requests = [CompletionRequest(cluster.model, prompt, output_tokens) for prompt in prompts]
        answers = await asyncio.gather(*(complete(cluster.url, request, ANSWER_TIMEOUT_S) for request in requests))
        for answer in answers:
            if answer.error is not None or answer.cached_tokens:
                raise NotMeasured(f"{cluster.name}: {answer.error or 'a prompt was cached'}")
        began, ended = min(answer.due_s for answer in answers), max(answer.due_s + answer.end_to_end_s for answer in answers)
        self.first_token_s[is_safe].append(fmean(answer.time_to_first_token_s for answer in answers))
        self.per_token_s[is_safe].append((ended - began) / sum(len(p) + output_tokens for p in prompts))

    def costs(self) -> list[Cost]:
        """Without the first round, which warms up."""
        return [
            Cost.of("TTFT", self.first_token_s[True][1:], self.first_token_s[False][1:]),
            Cost.of("time per token, all streams", self.per_token_s[True][1:], self.per_token_s[False][1:]),
        ]


def run(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; both sides get the same prompts.")] = 20,
    streams: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 4,
    input_tokens: Annotated[int, typer.Option("--isl", min=1, help="Tokens of a prompt.")] = 512,
    output_tokens: Annotated[int, typer.Option("--osl", min=2, help="Tokens of an answer.")] = 16,
    model: ModelFolder = None,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare a cluster with its digests, leases and quarantine to one without, in turns.

    Exit status: 0 when safety costs at most 3 %, 1 when more, 2 when it could not be measured.
    """
    measurement = Measurement("safety_cost")
    sides, shares = Sides(), []
    with measurement.running(), contextlib.ExitStack() as stack:
        both = [read_settings(model, ["decode.local_prefill_max_tokens=0", *(setting or []), *off]) for off in ((), OFF)]
        clusters = [
            stack.enter_context(Cluster(name, settings, Place(), Place(), Place()))
            for name, settings in zip(("safe", "unsafe"), both, strict=True)
        ]
        random, vocabulary = Random(seed), vocabulary_size(both[0])
        prompts = [[token_prompt(random, input_tokens, vocabulary) for _ in range(streams)] for _ in range(rounds + 1)]
        shares.append(asyncio.run(_measure(clusters, sides, prompts, output_tokens)))
    report = SafetyReport(
        machine=measurement.machine,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        streams=streams,
        costs=sides.costs() if len(sides.per_token_s[False]) > 1 else [],
        digest_share=shares[0] if shares else None,
    )
    measurement.end(report, render, json_file)


async def _measure(
    clusters: Sequence[Cluster], sides: Sides, prompts: Sequence[Sequence[list[int]]], output_tokens: int
) -> float | None:
    """The safe side's seconds on digests per second of computing."""
    with progress_bar() as bar:
        task = bar.add_task("in turns", total=2 * len(prompts))
        for number, asked in enumerate(prompts):
            for is_safe in order(number):
                await sides.measure(clusters[0 if is_safe else 1], is_safe, asked, output_tokens)
                bar.advance(task)
    safe, unsafe = [await _counted(cluster) for cluster in clusters]
    return (safe[0] - unsafe[0]) / safe[1] if safe[1] else None


async def _counted(cluster: Cluster) -> tuple[float, float]:
    """Seconds of digests and copies, and of engine steps, since the start."""
    async with httpx.AsyncClient(base_url=cluster.url, timeout=30, trust_env=False) as http:
        samples = (await Scraper(http, cluster.workers).read()).samples
    return total(samples, "serval_kv_digest_seconds_total"), total(samples, "serval_engine_busy_seconds_total")


def render(report: SafetyReport) -> RenderableType:
    """For a terminal."""
    title = (
        f"digests, leases, quarantine on / off: {report.streams} streams, {report.input_tokens} in, {report.output_tokens} out"
    )
    table = Table()
    for column in ("", "safe", "unsafe", "ratio, median (smallest-largest)", "mean, 95 %"):
        table.add_column(column, justify="right")
    for cost in report.costs:
        pairs, interval = cost.pairs, cost.interval
        ratio = "-" if pairs.ratio is None else f"{pairs.ratio:.3f} ({pairs.smallest_ratio:.3f}-{pairs.largest_ratio:.3f})"
        mean = "-" if interval is None else f"{interval.ratio:.3f} ({interval.low:.3f}-{interval.high:.3f})"
        table.add_row(cost.what, f"{pairs.our_median * 1e3:.2f} ms", f"{pairs.their_median * 1e3:.2f} ms", ratio, mean)
    share = "unknown" if report.digest_share is None else f"{report.digest_share:.2%}"
    verdicts = "\n".join(map(str, report.verdicts()))
    return Group(
        Text(title, style="italic"), table, Text(f"digests, of the time that engines compute: {share}"), Text(verdicts)
    )


if __name__ == "__main__":
    typer.run(run)
