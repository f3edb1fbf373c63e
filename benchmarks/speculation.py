"""What speculation is worth to one user: the same prompts with and without it, in turns.

Two clusters of one prefill and one decode worker are up at once, alike but for `engine.speculation`. Each prompt goes through one
and then the other; whoever has not the turn computes nothing. Prefill does not count: a user's rate is from the first token to the
last.

    python -m benchmarks.speculation --rounds 5 --json FILE
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import typer

from benchmarks.cluster import Cluster, Place, read_settings
from benchmarks.completions import Answer, CompletionRequest, complete
from benchmarks.errors import NotMeasured
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings, numbers
from benchmarks.paired import Paired, order
from benchmarks.scrape import Scraper, increase, total
from benchmarks.speculation_report import SpeculationReport, TaskReport, render
from benchmarks.speculation_tasks import TASKS, Task
from benchmarks.terminal import progress_bar

ANSWER_TIMEOUT_S = 300.0
SIDES = ("with", "without")
DRAFTED, ACCEPTED = "serval_spec_decode_num_draft_tokens_total", "serval_spec_decode_num_accepted_tokens_total"


class SideFailed(NotMeasured):
    """One side gave no usable answer: there is nothing to compare."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    streams: tuple[int, ...]
    rounds: int
    seed: int
    tasks: Sequence[Task]


def run(
    streams: Annotated[str, typer.Option(help="Numbers of users at once, all with the same task.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each task; both sides get the same prompts.")] = 5,
    speculation: Annotated[str, typer.Option(help="Who guesses: ngram, or mtp where the model has the head.")] = "ngram",
    task: Annotated[list[str] | None, typer.Option(help="A task's name. Default: all; may be repeated.")] = None,
    model: ModelFolder = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, on both sides.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker.")] = 1,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same draws.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare a user's tokens per second with speculation and without, in turns.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("speculation")
    tasks = [one for one in TASKS if not task or one.name in task]
    if not tasks:
        raise typer.BadParameter(f"--task: none of {', '.join(one.name for one in TASKS)}")
    plan = Plan(numbers("--streams", streams), rounds, seed, tasks)
    done: list[TaskReport] = []
    settings: dict[str, dict[str, Any]] = {}
    with measurement.running():
        common = [f"engine.dtype={dtype}", f"engine.threads={threads}", *(setting or [])]
        settings = {
            side: read_settings(model, [*common, f"engine.speculation={name}"])
            for side, name in zip(SIDES, (speculation, "off"), strict=True)
        }
        with contextlib.ExitStack() as stack:
            clusters = [stack.enter_context(Cluster(side, settings[side], Place(), Place(), Place())) for side in SIDES]
            asyncio.run(_measure(clusters, plan, done.append))
    ours = settings.get(SIDES[0])
    report = SpeculationReport(
        machine=measurement.machine,
        model=ours["router"]["model"] if ours else str(model or ""),
        dtype=dtype,
        threads=threads,
        speculation=speculation,
        draft_tokens=ours["engine"]["draft_tokens"] if ours else 0,
        tasks=done,
    )
    measurement.end(report, render, json_file)


async def _measure(clusters: Sequence[Cluster], plan: Plan, done: Callable[[TaskReport], None]) -> None:
    """Calls `done` for each task and number of streams, as it is finished."""
    with progress_bar() as bar:
        progress = bar.add_task("answers in turns", total=len(plan.tasks) * len(plan.streams) * (plan.rounds + 1) * len(SIDES))
        for streams in plan.streams:
            for task in plan.tasks:
                done(await _compare(clusters, plan, task, streams, lambda: bar.advance(progress)))


async def _compare(
    clusters: Sequence[Cluster], plan: Plan, task: Task, streams: int, advance: Callable[[], None]
) -> TaskReport:
    rates: dict[bool, list[float]] = {True: [], False: []}
    async with httpx.AsyncClient(base_url=clusters[0].url, timeout=None, trust_env=False) as http:
        scraper = Scraper(http, clusters[0].workers)
        before = await scraper.read()
        for number in range(-1, plan.rounds):  # the round before the first warms up
            if number == 0:
                before = await scraper.read()
            for ours in order(number):
                requests = [
                    CompletionRequest(
                        clusters[0].model,
                        task.prompt,
                        task.max_tokens,
                        temperature=task.temperature,
                        seed=plan.seed + (number + 1) * streams + stream,
                    )
                    for stream in range(streams)
                ]
                rates[ours].append(await _rate(clusters[0 if ours else 1], requests))
                advance()
        grown = increase(before.samples, (await scraper.read()).samples)
    return TaskReport(
        task=task.name,
        kind=task.kind,
        streams=streams,
        tokens_per_second=Paired.of(rates[True][1:], rates[False][1:]),
        tokens=plan.rounds * streams * task.max_tokens,
        drafted=round(total(grown, DRAFTED)),
        accepted=round(total(grown, ACCEPTED)),
    )


async def _rate(cluster: Cluster, requests: Sequence[CompletionRequest]) -> float:
    """Tokens per second of one user, the mean over them all. Raises SideFailed."""
    answers = await asyncio.gather(*(complete(cluster.url, request, ANSWER_TIMEOUT_S) for request in requests))
    return sum(_user_rate(cluster, answer) for answer in answers) / len(answers)


def _user_rate(cluster: Cluster, answer: Answer) -> float:
    """The first event has one token, prefill's; how many the others have is speculation's affair."""
    if answer.error is not None:
        raise SideFailed(f"{cluster.name} speculation: {answer.error}")
    if len(answer.event_s) < 2:
        raise SideFailed(f"{cluster.name} speculation: an answer of one event has no rate")
    return (answer.completion_tokens - 1) / answer.decode_s


if __name__ == "__main__":
    typer.run(run)
