"""What a setting does to decode speed: two clusters, alike but for the settings named, answer the same prompts in turns.

python -m benchmarks.settings --ours engine.steps_in_flight=2 --theirs engine.steps_in_flight=1 --streams 1,8
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.cluster import Cluster, Place, read_settings, vocabulary_size
from benchmarks.completions import CompletionRequest, complete
from benchmarks.decode_report import StreamsReport, together_tokens_per_second
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings, numbers
from benchmarks.paired import Machine, Paired, Verdict, order
from benchmarks.terminal import progress_bar
from benchmarks.workload import token_prompt

ANSWER_TIMEOUT_S = 300.0

Side = Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="What is set on this side; may be repeated.")]


class SettingsReport(BaseModel):
    """The whole comparison. It has no targets: what a setting is worth depends on the machine."""

    model_config = ConfigDict(frozen=True)

    machine: Machine
    ours: list[str]
    theirs: list[str]
    input_tokens: int
    output_tokens: int
    streams: list[StreamsReport]

    def verdicts(self) -> list[Verdict]:
        return []


def run(
    ours: Side,
    theirs: Side,
    streams: Annotated[str, typer.Option(help="Numbers of streams.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each; both sides get the same prompts.")] = 5,
    input_tokens: Annotated[int, typer.Option("--isl", min=1, help="Tokens of a prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option("--osl", min=4, help="Tokens of an answer.")] = 128,
    model: ModelFolder = None,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare decode speed under two settings, in turns.

    Exit status: 0 when it was measured, 2 when it could not be.
    """
    measurement = Measurement("settings")
    counts = numbers("--streams", streams)
    done: list[StreamsReport] = []
    with measurement.running(), contextlib.ExitStack() as stack:
        both = [read_settings(model, [*(setting or []), *side]) for side in (ours, theirs)]
        clusters = [
            stack.enter_context(Cluster(name, settings, Place(), Place(), Place()))
            for name, settings in zip(("ours", "theirs"), both, strict=True)
        ]
        random, vocabulary = Random(seed), vocabulary_size(both[0])

        def prompts(count: int) -> list[list[int]]:
            return [token_prompt(random, input_tokens, vocabulary) for _ in range(count)]

        asyncio.run(_measure(clusters, counts, rounds, output_tokens, prompts, done.append))
    report = SettingsReport(
        machine=measurement.machine,
        ours=ours,
        theirs=theirs,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        streams=done,
    )
    measurement.end(report, render, json_file)


async def _measure(
    clusters: Sequence[Cluster],
    counts: Sequence[int],
    rounds: int,
    output_tokens: int,
    prompts: Callable[[int], list[list[int]]],
    done: Callable[[StreamsReport], None],
) -> None:
    """Calls `done` for each number of streams, as it is finished."""
    with progress_bar() as bar:
        task = bar.add_task("decoding in turns", total=len(counts) * (rounds + 1) * 2)
        for count in counts:
            rates: dict[bool, list[float]] = {True: [], False: []}
            for number in range(-1, rounds):  # the round before the first warms up
                asked = prompts(count)
                for ours in order(number):
                    rates[ours].append(await _rate(clusters[0 if ours else 1], asked, output_tokens))
                    bar.advance(task)
            done(StreamsReport(streams=count, tokens_per_second=Paired.of(rates[True][1:], rates[False][1:])))


async def _rate(cluster: Cluster, prompts: Sequence[list[int]], output_tokens: int) -> float:
    requests = [CompletionRequest(cluster.model, prompt, output_tokens) for prompt in prompts]
    answers = await asyncio.gather(*(complete(cluster.url, request, ANSWER_TIMEOUT_S) for request in requests))
    return together_tokens_per_second(answers)


def render(report: SettingsReport) -> RenderableType:
    """For a terminal."""
    title = f"{' '.join(report.ours)} against {' '.join(report.theirs)}: tokens/s of all streams, medians"
    table = Table()
    for column in ("streams", "ours", "theirs", "ratio (smallest-largest)"):
        table.add_column(column, justify="right")
    for one in report.streams:
        rate = one.tokens_per_second
        ratio = "-" if rate.ratio is None else f"{rate.ratio:.3f} ({rate.smallest_ratio:.3f}-{rate.largest_ratio:.3f})"
        table.add_row(str(one.streams), f"{rate.our_median:.1f}", f"{rate.their_median:.1f}", ratio)
    return Group(Text(title, style="italic"), table)


if __name__ == "__main__":
    typer.run(run)
