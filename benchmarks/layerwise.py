"""What sending KV layer by layer while prefill computes saves against sending it all at the end of the prompt.

Two clusters (one prefill, one decode worker each) run at once, one with `transfer.mode` layerwise, the other whole_prompt. Each
prompt goes to both, one after the other, in alternating order; nothing else runs meanwhile. On the links:

- local: both processes on loopback, where the transport copies straight into the peer's memory;
- slow: prefill in a network namespace of its own, behind a link of `--slow-mbit`, KV by TCP. Needs root.

    python -m benchmarks.layerwise --lengths 128,1024,4096 --rounds 5 --json FILE
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Annotated, Any

import httpx
import typer

from benchmarks.cluster import Cluster, Place, read_settings, vocabulary_size
from benchmarks.completions import CompletionRequest, complete
from benchmarks.errors import NotMeasured
from benchmarks.layerwise_report import LayerwiseReport, LengthReport, Trial, render
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings, numbers
from benchmarks.paired import order
from benchmarks.scrape import Scraper
from benchmarks.slow_link import DEVICE, SlowLink
from benchmarks.terminal import progress_bar
from benchmarks.workload import token_prompt

REQUEST_TIMEOUT_S = 300.0
MODES = ("layerwise", "whole_prompt")


class LinkKind(StrEnum):
    LOCAL = "local"
    SLOW = "slow"


class TrialFailed(NotMeasured):
    """A request failed or its KV was not transferred: no comparison can be made of it."""


@dataclass(frozen=True)
class Plan:
    """What is measured on each link."""

    lengths: tuple[int, ...]
    rounds: int
    output_tokens: int
    seed: int


@dataclass(frozen=True)
class Subject:
    """One of the two clusters, connected."""

    cluster: Cluster
    http: httpx.AsyncClient
    scraper: Scraper


@dataclass(frozen=True)
class Ends:
    """Where prefill runs, and where decode, router and client do."""

    prefill: Place
    decode: Place


def run(
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens.")] = "128,1024,4096",
    rounds: Annotated[int, typer.Option(min=1, help="Prompts of each length, each sent both ways.")] = 5,
    output_tokens: Annotated[int, typer.Option("--osl", min=2, help="Tokens of an answer.")] = 8,
    links: Annotated[list[LinkKind] | None, typer.Option("--link", help="Default: both; may be repeated.")] = None,
    slow_mbit: Annotated[float, typer.Option(min=1, help="Speed of the slow link, Mbit/s.")] = 1000.0,
    model: ModelFolder = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; float32 doubles the KV.")] = "bfloat16",
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare layer-wise with whole-prompt KV transfer, in turns.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("layerwise")
    plan = Plan(numbers("--lengths", lengths), rounds, output_tokens, seed)
    reports: list[LengthReport] = []
    with measurement.running():
        settings = {
            mode: read_settings(
                model,
                # Every prompt moves: decode would learn to compute the short ones by itself.
                [f"engine.dtype={dtype}", "decode.local_prefill_max_tokens=0", *(setting or []), f"transfer.mode={mode}"],
            )
            for mode in MODES
        }
        for kind in links or list(LinkKind):
            reports.extend(_measure_link(kind, slow_mbit, settings, plan))
    report = LayerwiseReport(
        machine=measurement.machine, dtype=dtype, slow_mbit=slow_mbit, output_tokens=output_tokens, lengths=reports
    )
    measurement.end(report, render, json_file)


def _measure_link(
    kind: LinkKind, slow_mbit: float, settings: Mapping[str, Mapping[str, Any]], plan: Plan
) -> Iterator[LengthReport]:
    """Both clusters up on that link; a report per prompt length, as each is done."""
    with contextlib.ExitStack() as stack:
        ends = _ends(kind, slow_mbit, stack)
        both = [
            stack.enter_context(
                Cluster(f"{kind}-{mode}", settings[mode], router=ends.decode, prefill=ends.prefill, decode=ends.decode)
            )
            for mode in MODES
        ]
        vocabulary = vocabulary_size(settings[MODES[0]])
        bar = stack.enter_context(progress_bar())
        task = bar.add_task(f"{kind} link", total=len(plan.lengths) * plan.rounds * len(MODES))
        with ends.decode.entered():
            for length in plan.lengths:
                yield asyncio.run(_measure_length(kind, both, plan, length, vocabulary, lambda: bar.advance(task)))


def _ends(kind: LinkKind, slow_mbit: float, stack: contextlib.ExitStack) -> Ends:
    if kind is LinkKind.LOCAL:
        return Ends(Place(), Place())
    link = stack.enter_context(SlowLink(slow_mbit))
    # Processes of one machine could still copy into each other's memory past the link: only TCP goes through it.
    return Ends(*(Place(end.address, DEVICE, "tcp", end) for end in (link.far, link.near)))


async def _measure_length(
    kind: LinkKind, both: Sequence[Cluster], plan: Plan, length: int, vocabulary: int, advance: Callable[[], None]
) -> LengthReport:
    random = Random(f"{plan.seed} {length}")
    trials: tuple[list[Trial], list[Trial]] = ([], [])
    async with contextlib.AsyncExitStack() as stack:
        subjects = [await stack.enter_async_context(_subject(cluster)) for cluster in both]
        for subject in subjects:
            await _trial(subject, token_prompt(random, length, vocabulary), plan.output_tokens)  # warms up; not counted
        for number in range(plan.rounds):
            prompt = token_prompt(random, length, vocabulary)
            for layerwise in order(number):
                which = 0 if layerwise else 1
                trials[which].append(await _trial(subjects[which], prompt, plan.output_tokens))
                advance()
    return LengthReport.of(kind, length, *trials)


@contextlib.asynccontextmanager
async def _subject(cluster: Cluster) -> AsyncIterator[Subject]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=None, trust_env=False) as http:
        yield Subject(cluster, http, Scraper(http, cluster.workers))


async def _trial(subject: Subject, prompt: list[int], output_tokens: int) -> Trial:
    """One prompt through one cluster, alone. Raises TrialFailed."""
    before = await subject.scraper.read()
    answer = await complete(
        subject.cluster.url, CompletionRequest(subject.cluster.model, prompt, output_tokens), REQUEST_TIMEOUT_S
    )
    growth = (await subject.scraper.read()).growth_since(before)
    if answer.error is not None:
        raise TrialFailed(f"{subject.cluster.name}, {len(prompt)} tokens: {answer.error}")
    if len(answer.event_s) < 2:
        raise TrialFailed(f"{subject.cluster.name}, {len(prompt)} tokens: all tokens came in one event; ask for more (--osl)")
    if growth.exposed.count != 1 or answer.cached_tokens:
        raise TrialFailed(
            f"{subject.cluster.name}, {len(prompt)} tokens: {growth.exposed.count} transfers of one prompt "
            f"({answer.cached_tokens} tokens cached, prefilled at decode: {growth.local_prefills or 'none'})"
        )
    return Trial(
        time_to_first_token_s=answer.time_to_first_token_s,
        second_token_s=answer.event_s[1] - answer.due_s,
        first_gap_s=answer.event_s[1] - answer.event_s[0],
        end_to_end_s=answer.end_to_end_s,
        transfer_s=growth.transfer.total_s,
        exposed_s=growth.exposed.total_s,
        exposed_at_prefill_s=growth.exposed_at_prefill.total_s,
        landed_bytes=growth.landed_bytes,
    )


if __name__ == "__main__":
    typer.run(run)
