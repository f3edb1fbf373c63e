"""What the router costs: processor time per streamed token, tokens per second and added latency, before mock workers, beside smg's
in the same run.

    python -m benchmarks.router_cost --streams 32,256 --rounds 3 --json FILE
"""

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.cluster import read_settings
from benchmarks.measurement import JsonFile, Measurement, Settings, numbers
from benchmarks.paired import order
from benchmarks.router_cost.cpu import cpu_s
from benchmarks.router_cost.pipe import Child, Json
from benchmarks.router_cost.report import CostReport, Phase, Relay, Round, StreamsReport, render
from benchmarks.router_cost.sides import NotInstalled, Serval, Side, Smg, find_smg
from benchmarks.terminal import progress_bar

ASK_TIMEOUT_S = 30.0
PHASE_TIMEOUT_S = 120.0
WARM_STREAMS, WARM_TOKENS = 4, 50
FEWEST_PACED = 3
"""Answers per stream where streams begin one after another: the first and the last of them are not under full load."""


@dataclass(frozen=True)
class Plan:
    """What is measured. `fewest_tokens` of a phase, so that its processor time is long beside the clock's tick of 10 ms."""

    streams: tuple[int, ...]
    streams_per_worker: int
    tokens: int
    pace_s: float
    rounds: int
    fewest_tokens: int


def run(
    streams: Annotated[str, typer.Option(help="Numbers of streams.")] = "32,256",
    streams_per_worker: Annotated[int, typer.Option(min=1, help="Streams that a mock decode worker has in one step.")] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 200,
    pace_ms: Annotated[float, typer.Option(min=1, help="Between two tokens of a paced stream.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in which the routers take turns.")] = 3,
    fewest_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a phase at least; more streams than that have more.")
    ] = 25_000,
    peer: Annotated[
        Literal["smg", "none"], typer.Option(help="The router to compare with; skipped where it is not installed.")
    ] = "smg",
    smg: Annotated[Path | None, typer.Option(help="smg's command. Default: beside this interpreter, or on the PATH.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder with a byte-level tokenizer. Default: the embedded model's.")
    ] = None,
    setting: Settings = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the router's cost per token, in turns with smg's.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("router_cost")
    plan = Plan(numbers("--streams", streams), streams_per_worker, tokens, pace_ms / 1e3, rounds, fewest_tokens)
    done: list[StreamsReport] = []
    command = _smg(smg) if peer == "smg" else None
    with measurement.running():
        settings = read_settings(model, setting or [])
        asyncio.run(_measure(plan, settings, command, done.append))
    report = CostReport(
        machine=measurement.machine,
        tokens=tokens,
        pace_ms=pace_ms,
        streams_per_worker=streams_per_worker,
        peer=Smg.name if command is not None else None,
        streams=done,
    )
    measurement.end(report, render, json_file)


def _smg(given: Path | None) -> Path | None:
    """smg's command; None, and a word about it, where it is not installed."""
    try:
        return find_smg(given)
    except NotInstalled as error:
        print(f"router_cost: measured without a peer: {error}", file=sys.stderr)
        return None


async def _measure(plan: Plan, settings: dict[str, Any], smg: Path | None, done: Callable[[StreamsReport], None]) -> None:
    """Calls `done` for each number of streams, as it is finished."""
    with progress_bar() as bar:
        task = bar.add_task("streaming in turns", total=len(plan.streams) * plan.rounds * (1 if smg is None else 2))
        for streams in plan.streams:
            workers = math.ceil(streams / plan.streams_per_worker)
            ours = Serval(settings, workers)
            theirs = Smg(ours.model, ours.folder, workers, smg) if smg is not None else None
            report = StreamsReport(streams=streams, ours=[], theirs=[])
            async with _running(ours, theirs) as client:
                for number in range(plan.rounds):
                    for our_turn in order(number):
                        side, rounds = (ours, report.ours) if our_turn else (theirs, report.theirs)
                        if side is not None:
                            rounds.append(await _round(client, side, plan, streams))
                            bar.advance(task)
            done(report)


@contextlib.asynccontextmanager
async def _running(*sides: Side | None) -> AsyncIterator[Child]:
    """The client, with both sides up and warm."""
    async with contextlib.AsyncExitStack() as stack:
        present = [side for side in sides if side is not None]
        for side in present:
            stack.push_async_callback(side.stop)
            await side.start()
        client, _ = await Child.start("benchmarks.router_cost.client", ["--folder", str(present[0].folder)])
        stack.push_async_callback(client.stop)
        for side in present:
            await _phase(client, side, WARM_TOKENS, streams=WARM_STREAMS, requests=WARM_STREAMS, pace_s=0.0)
        yield client


async def _round(client: Child, side: Side, plan: Plan, streams: int) -> Round:
    """Each phase has some answers after one another on each stream: what is measured of them is mostly their steady middle."""
    per_stream = math.ceil(plan.fewest_tokens / (plan.tokens * streams))
    requests, fewest = streams * per_stream, streams * max(per_stream, FEWEST_PACED)
    flooded = await _phase(client, side, plan.tokens, streams, requests, pace_s=0.0)
    paced = await _phase(client, side, plan.tokens, streams, fewest, plan.pace_s)
    half_load = await _phase(client, side, plan.tokens, streams, fewest, streams / (flooded.tokens_per_s / 2))
    return Round(flooded=flooded, paced=paced, half_load=half_load)


async def _phase(client: Child, side: Side, tokens: int, streams: int, requests: int, pace_s: float) -> Phase:
    assert side.worker is not None
    await side.worker.ask({"pace_s": pace_s}, ASK_TIMEOUT_S)
    before_s = cpu_s(side.pid)
    seen = await client.ask(
        {
            "url": side.url,
            "model": side.model,
            "streams": streams,
            "requests": requests,
            "tokens": tokens,
            "spread_s": tokens * pace_s,
            "timeout_s": PHASE_TIMEOUT_S,
        },
        PHASE_TIMEOUT_S + ASK_TIMEOUT_S,
    )
    used_s = cpu_s(side.pid) - before_s
    sent = await side.worker.ask({}, ASK_TIMEOUT_S)
    return Phase(
        cpu_us_per_token=used_s * 1e6 / seen["tokens"],
        tokens_per_s=seen["tokens"] / seen["duration_s"],
        tokens_per_event=seen["tokens"] / seen["events"],
        relay=Relay.of(_delays_s(sent["sent_s"], seen["at_s"])),
    )


def _delays_s(sent_s: Json, at_s: Json) -> list[list[float]]:
    """Of each answer, token by token. Both processes' clocks are the machine's one (CLOCK_MONOTONIC)."""
    return [[at - sent for sent, at in zip(sent_s[number], arrivals, strict=True)] for number, arrivals in at_s.items()]


if __name__ == "__main__":
    typer.run(run)
