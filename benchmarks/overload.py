"""What more load than a cluster can take does to it: goodput at half, one, two and four times its capacity, and afterwards.

Two clusters (a router, a prefill and a decode worker each), alike but for what refuses requests at the door: the predicted wait, as
by default, or the line's length alone. What a closed loop gets answered is the capacity; it is measured again before each stretch
of load, so that a machine that becomes slower or faster meanwhile moves it along. Then shares and multiples of it are offered, in
an open loop with Poisson arrivals; the last overload is followed by half the capacity without a pause.

The objective follows from the first closed loop: a first token within what may be waited and twice the 90th percentile that it had
there, and half of its median speed.

    python -m benchmarks.overload --seconds 20 --json FILE
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, get_args

import httpx
import typer

from benchmarks.cluster import Cluster, Place, read_settings, vocabulary_size
from benchmarks.completions import Answer, CompletionRequest, complete
from benchmarks.errors import NotMeasured
from benchmarks.limited_cluster import LimitedCluster
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings
from benchmarks.overload_report import Ask, Objective, OverloadReport, Phase, Shedding, Side, is_refusal, render
from benchmarks.quantiles import median, percentile
from benchmarks.scrape import Scraper, by_label, increase
from benchmarks.terminal import progress_bar
from benchmarks.workload import poisson_arrivals_s, token_prompt

ANSWER_TIMEOUT_S = 120.0
REFUSED_PAUSE_S = 0.1
"""In a closed loop, of a client that was refused."""
STRETCHES: tuple[tuple[float, ...], ...] = ((0.5,), (1.0,), (2.0,), (4.0, 0.5))
"""Multiples of the capacity. Within a stretch there is no pause; between two the cluster comes to rest."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    seconds: float
    sequences: int
    overcommit: int
    """Requests that wait at the decode worker, not in the router's line."""
    longest_wait_s: float
    input_tokens: int
    output_tokens: int
    window_s: float


@dataclass(frozen=True)
class Capacity:
    """Of a closed loop that keeps every place taken."""

    requests_per_s: float
    objective: Objective


def run(
    seconds: Annotated[float, typer.Option(min=1, help="Per phase.")] = 20.0,
    sequences: Annotated[int, typer.Option(min=1, help="Answers that the decode worker computes at once.")] = 8,
    longest_wait: Annotated[float, typer.Option(min=0.1, help="router.max_predicted_wait_s.")] = 1.0,
    input_tokens: Annotated[int, typer.Option("--isl", min=1)] = 64,
    output_tokens: Annotated[int, typer.Option("--osl", min=2)] = 32,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds in which all must be well to have recovered.")] = 2.0,
    limited: Annotated[
        bool, typer.Option("--limited", help="Workers with a worker's limits and no model: for machines that are not quiet.")
    ] = False,
    model: ModelFolder = None,
    setting: Settings = None,
    json_file: JsonFile = None,
) -> None:
    """Measure what overload does to goodput, and how fast it is over.

    Exit status: 0 when every target is met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("overload")
    sides: list[Side] = []
    found: list[Capacity] = []
    with measurement.running(), contextlib.ExitStack() as stack:
        clusters: dict[Shedding, Cluster | LimitedCluster] = {}
        for shedding in get_args(Shedding):
            overrides = [f"engine.max_sequences={sequences}", f"router.max_predicted_wait_s={longest_wait:g}"]
            settings = read_settings(model, [*overrides, f"router.shedding={shedding}", *(setting or [])])
            one = LimitedCluster(shedding, settings) if limited else Cluster(shedding, settings, Place(), Place(), Place())
            clusters[shedding] = one
            stack.enter_context(one)
        overcommit = settings["router"]["decode_overcommit"]
        plan = Plan(seconds, sequences, overcommit, longest_wait, input_tokens, output_tokens, window)
        asyncio.run(_measure(clusters, plan, vocabulary_size(settings), found, sides))
    if not found:
        raise typer.Exit(2)
    report = OverloadReport(
        machine=measurement.machine,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        longest_wait_s=longest_wait,
        objective=found[0].objective,
        window_s=window,
        sides=sides,
    )
    strange = [ask.error for side in sides for phase in side.phases for ask in phase.asks if ask.error and not ask.is_refused]
    measurement.count_errors(strange, "requests that were not refused")
    measurement.end(report, render, json_file)


async def _measure(
    clusters: Mapping[Shedding, Cluster | LimitedCluster], plan: Plan, vocabulary: int, found: list[Capacity], sides: list[Side]
) -> None:
    """Fills `found` and `sides` as they are done, so that an interrupted run keeps what it has."""
    async with contextlib.AsyncExitStack() as stack:
        for cluster in clusters.values():
            if isinstance(cluster, LimitedCluster):
                await cluster.start_worker(stack)
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("capacity, then overload", total=2 + len(clusters) * sum(map(len, STRETCHES)))
        loads = {shedding: _Load(cluster, plan, vocabulary) for shedding, cluster in clusters.items()}
        for load in loads.values():  # both warm
            found.append(await load.closed_loop())
            bar.advance(task)
        for shedding, load in loads.items():
            phases: list[Phase] = []
            sides.append(Side(shedding=shedding, phases=phases))
            for factors in STRETCHES:
                sides[-1] = Side(
                    shedding=shedding, phases=[*sides[-1].phases, *await load.offer(factors, await load.closed_loop())]
                )
                bar.advance(task, len(factors))


class _Load:
    """One cluster's clients, in this process."""

    def __init__(self, cluster: Cluster | LimitedCluster, plan: Plan, vocabulary: int) -> None:
        self._cluster = cluster
        self._plan = plan
        self._vocabulary = vocabulary
        self._random = Random(0)

    def _request(self) -> CompletionRequest:
        plan = self._plan
        return CompletionRequest(
            self._cluster.model, token_prompt(self._random, plan.input_tokens, self._vocabulary), plan.output_tokens
        )

    async def closed_loop(self) -> Capacity:
        """As many at a time as are sent to the decode worker; the first third of the time only warms up."""
        begun, counted_s = time.perf_counter(), self._plan.seconds / 2
        until = begun + 1.5 * counted_s
        answers: list[Answer] = []

        async def user() -> None:
            while time.perf_counter() < until:
                answers.append(await complete(self._cluster.url, self._request(), ANSWER_TIMEOUT_S))
                if is_refusal(answers[-1].error):
                    await asyncio.sleep(REFUSED_PAUSE_S)

        await asyncio.gather(*(user() for _ in range(self._plan.sequences + self._plan.overcommit)))
        counted = [answer for answer in answers if answer.ended_s and begun + counted_s / 2 <= answer.ended_s <= until]
        speeds = [speed for answer in counted if (speed := answer.tokens_per_second)]
        failed = [answer.error for answer in answers if answer.error is not None and not is_refusal(answer.error)]
        if failed or not speeds:
            problem = failed[0] if failed else "nothing was answered in time; try more --seconds"
            raise NotMeasured(f"{self._cluster.name}: {problem}")
        first_s = percentile([answer.time_to_first_token_s for answer in counted], 90)
        objective = Objective(ttft_s=self._plan.longest_wait_s + 2 * first_s, tokens_per_second=median(speeds) / 2)
        return Capacity(len(counted) / counted_s, objective)

    async def offer(self, factors: Sequence[float], capacity: Capacity) -> list[Phase]:
        """One stretch, from its first request to its last answer."""
        before = await self._read()
        plan, start_s = self._plan, time.perf_counter()
        asked: list[list[Any]] = []
        for number, factor in enumerate(factors):
            begin_s = start_s + number * plan.seconds
            due = list(self._arrivals(factor * capacity.requests_per_s))
            asked.append([asyncio.create_task(self._ask(begin_s, due_s)) for due_s in due])
        for tasks in asked:
            await asyncio.gather(*tasks)
        sheds = by_label(increase(before, await self._read()), "serval_sheds_total", "reason")
        return [
            Phase(
                factor=factor,
                capacity=capacity.requests_per_s,
                seconds=plan.seconds,
                is_after=number > 0,
                asks=[task.result() for task in tasks],
                sheds=sheds,
            )
            for number, (factor, tasks) in enumerate(zip(factors, asked, strict=True))
        ]

    def _arrivals(self, rate: float) -> Iterator[float]:
        """Poisson, over one phase."""
        count = int(2 * rate * self._plan.seconds) + 10
        arrivals = poisson_arrivals_s(self._random.randrange(2**32), count, rate)
        return itertools.takewhile(lambda due_s: due_s < self._plan.seconds, arrivals)

    async def _ask(self, begin_s: float, due_s: float) -> Ask:
        request = self._request()
        await asyncio.sleep(max(0.0, begin_s + due_s - time.perf_counter()))
        sent_s = time.perf_counter()
        answer = await complete(self._cluster.url, request, ANSWER_TIMEOUT_S, due_s=begin_s + due_s)
        return Ask(
            due_s=due_s,
            late_s=sent_s - begin_s - due_s,
            ttft_s=answer.time_to_first_token_s if answer.event_s else None,
            tokens_per_second=answer.tokens_per_second if answer.event_s else None,
            error=answer.error,
            ended_s=time.perf_counter() - sent_s,
        )

    async def _read(self) -> Any:
        async with httpx.AsyncClient(base_url=self._cluster.url, timeout=30, trust_env=False) as http:
            return (await Scraper(http, self._cluster.workers).read()).samples


if __name__ == "__main__":
    typer.run(run)
