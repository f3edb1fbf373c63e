"""What safety costs: digests, leases and quarantine on against off, in one run.

Two clusters (one prefill, one decode worker each) answer the same prompts in short turns. One is as it is by default; the other
verifies nothing (`transfer.digest`) and uses a landing slot again without waiting for proof that nobody writes to it
(`decode.fence_slots`), which is for this measurement only. Every prompt moves. A round is one turn of either side at each load, who
comes first alternates, and only turns next to each other are compared.

    python -m benchmarks.safety_cost --loads 1x64,1x256,4x128 --rounds 200 --json FILE
    python -m benchmarks.safety_cost --control          # both sides safe: what this machine can tell
"""

import asyncio
import contextlib
import re
from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import Annotated

import httpx
import typer

from benchmarks.cluster import Cluster, Place, read_settings, vocabulary_size
from benchmarks.completions import Answer, CompletionRequest, complete
from benchmarks.errors import NotMeasured
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings
from benchmarks.paired import order
from benchmarks.processor_time import processor_seconds
from benchmarks.safety_report import Load, LoadCost, SafetyReport, Turn, render
from benchmarks.scrape import Scraper, total
from benchmarks.terminal import progress_bar
from benchmarks.workload import token_prompt

ANSWER_TIMEOUT_S = 300.0
OFF = ("transfer.digest=false", "decode.fence_slots=false")
SETTLE_S = 0.02
"""After a turn: what comes after an answer, the slot's release above all, is processor time of that turn."""


class Sides:
    """The two clusters, safe first, and their turns so far."""

    def __init__(self, clusters: Sequence[Cluster], loads: Sequence[Load], vocabulary: int, seed: int) -> None:
        self._clusters = {True: clusters[0], False: clusters[1]}
        self._vocabulary = vocabulary
        self._random = Random(seed)
        self.turns: dict[Load, dict[bool, list[Turn]]] = {load: {True: [], False: []} for load in loads}
        self.digest_share: float | None = None

    async def round(self, number: int) -> None:
        """Round 0 warms up and does not count."""
        for load, turns in self.turns.items():
            prompts = [token_prompt(self._random, load.input_tokens, self._vocabulary) for _ in range(load.streams)]
            found = {is_safe: await _turn(self._clusters[is_safe], load, prompts) for is_safe in order(number)}
            if number > 0:
                for is_safe, turn in found.items():
                    turns[is_safe].append(turn)
        await self._count()

    async def _count(self) -> None:
        safe, unsafe = [await _counted(self._clusters[is_safe]) for is_safe in (True, False)]
        self.digest_share = (safe[0] - unsafe[0]) / safe[1] if safe[1] else None

    def costs(self) -> list[LoadCost]:
        return [LoadCost(load=load, safe=turns[True], unsafe=turns[False]) for load, turns in self.turns.items()]


def run(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of either side at each load, after one that warms up.")] = 200,
    loads: Annotated[str, typer.Option(help="STREAMSxTOKENS,...: requests at once, and tokens of each prompt.")] = (
        "1x64,1x256,4x128"
    ),
    output_tokens: Annotated[int, typer.Option("--osl", min=2, help="Tokens of an answer.")] = 8,
    control: Annotated[bool, typer.Option("--control", help="Both sides safe: what this machine can tell.")] = False,
    model: ModelFolder = None,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare a cluster with its digests, leases and quarantine to one without, in short turns.

    Exit status: 0 when safety costs at most 3 %, 1 when more, 2 when it could not be measured.
    """
    measured_loads = _read_loads(loads, output_tokens)
    measurement = Measurement("safety_cost")
    sides: Sides | None = None
    with measurement.running(), contextlib.ExitStack() as stack:
        off = () if control else OFF
        both = [read_settings(model, ["decode.local_prefill_max_tokens=0", *(setting or []), *each]) for each in ((), off)]
        clusters = [
            stack.enter_context(Cluster(name, settings, Place(), Place(), Place()))
            for name, settings in zip(("safe", "control" if control else "unsafe"), both, strict=True)
        ]
        sides = Sides(clusters, measured_loads, vocabulary_size(both[0]), seed)
        asyncio.run(_measure(sides, rounds))
    report = SafetyReport(
        machine=measurement.machine,
        is_control=control,
        loads=sides.costs() if sides is not None else [],
        digest_share=sides.digest_share if sides is not None else None,
    )
    measurement.end(report, render, json_file)


def _read_loads(text: str, output_tokens: int) -> list[Load]:
    found = [re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", part) for part in text.split(",")]
    if None in found:
        raise typer.BadParameter(f"--loads: {text!r} is not a list like 1x512,4x256")
    parsed = [(int(match[1]), int(match[2])) for match in found if match is not None]
    return [
        Load(streams=streams, input_tokens=tokens, output_tokens=output_tokens) for streams, tokens in dict.fromkeys(parsed)
    ]


async def _measure(sides: Sides, rounds: int) -> None:
    with progress_bar() as bar:
        task = bar.add_task("in turns", total=rounds + 1)
        for number in range(rounds + 1):
            await sides.round(number)
            bar.advance(task)


async def _turn(cluster: Cluster, load: Load, prompts: Sequence[list[int]]) -> Turn:
    """Raises NotMeasured when an answer failed."""
    spent_s = processor_seconds(cluster.worker_ids)
    requests = [CompletionRequest(cluster.model, prompt, load.output_tokens) for prompt in prompts]
    answers = await asyncio.gather(*(complete(cluster.url, request, ANSWER_TIMEOUT_S) for request in requests))
    await asyncio.sleep(SETTLE_S)
    spent_s = processor_seconds(cluster.worker_ids) - spent_s
    for answer in answers:
        if answer.error is not None or answer.cached_tokens:
            raise NotMeasured(f"{cluster.name}: {answer.error or 'a prompt was cached'}")
    return Turn(
        first_token_s=fmean(answer.time_to_first_token_s for answer in answers),
        token_s=_seconds(answers) / (load.streams * (load.input_tokens + load.output_tokens)),
        decode_s=fmean(answer.decode_s for answer in answers) / (load.output_tokens - 1),
        processor_s=spent_s,
    )


def _seconds(answers: Sequence[Answer]) -> float:
    """From the first request to the end of the last answer."""
    return max(answer.due_s + answer.end_to_end_s for answer in answers) - min(answer.due_s for answer in answers)


async def _counted(cluster: Cluster) -> tuple[float, float]:
    """Seconds of digests and copies, and of engine steps, since the start."""
    async with httpx.AsyncClient(base_url=cluster.url, timeout=30, trust_env=False) as http:
        samples = (await Scraper(http, cluster.workers).read()).samples
    return total(samples, "serval_kv_digest_seconds_total"), total(samples, "serval_engine_busy_seconds_total")


if __name__ == "__main__":
    typer.run(run)
