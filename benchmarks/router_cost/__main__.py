"""What the router costs: processor time per streamed token, tokens per second and added latency, before mock workers, beside smg's
in the same run.

    python -m benchmarks.router_cost --streams 32,256 --rounds 3 --json FILE
"""

import asyncio
import contextlib
import math
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.cluster import ClusterError, read_settings
from benchmarks.paired import Machine, order
from benchmarks.router_cost.cpu import cpu_s
from benchmarks.router_cost.pipe import Child, ChildFailed, Json
from benchmarks.router_cost.report import CostReport, Phase, Relay, Round, StreamsReport, render
from benchmarks.router_cost.sides import NotInstalled, Serval, Side, Smg, find_smg
from benchmarks.terminal import progress_bar, result_console

ASK_TIMEOUT_S = 30.0
PHASE_TIMEOUT_S = 120.0
EXIT_MISSED = 1
EXIT_FAILED = 2


@dataclass(frozen=True)
class Plan:
    """What is measured. `fewest_tokens` of a phase, so that its processor time is long beside the clock's tick of 10 ms."""

    streams: tuple[int, ...]
    tokens: int
    pace_s: float
    rounds: int
    fewest_tokens: int


def run(
    streams: Annotated[str, typer.Option(help="Numbers of streams.")] = "32,256",
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
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the cluster.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as JSON.")] = None,
) -> None:
    """Measure the router's cost per token, in turns with smg's.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes go also then
    machine = Machine.here()
    if warning := machine.warning():
        print(warning, file=sys.stderr)
    plan = Plan(tuple(int(number) for number in streams.split(",")), tokens, pace_ms / 1e3, rounds, fewest_tokens)
    done: list[StreamsReport] = []
    problem: str | None = None
    sides: list[Side] = []
    try:
        settings = read_settings(model, setting or [])
        sides = [Serval(settings)]
        if peer == "smg":
            with _reported_if_missing():
                sides.append(Smg(sides[0].model, sides[0].folder, find_smg(smg)))
        asyncio.run(_measure(sides, plan, done.append))
    except (ClusterError, ChildFailed, ValueError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        problem = "interrupted"
    report = CostReport(
        machine=machine, tokens=tokens, pace_ms=pace_ms, peer=sides[1].name if sides[1:] else None, streams=done
    )
    result_console().print(render(report))
    if json_file is not None:
        json_file.write_text(report.model_dump_json(indent=2) + "\n")
    if problem is not None:
        print(f"router_cost: {problem}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED)
    if not all(verdict.met for verdict in report.verdicts()):
        raise typer.Exit(EXIT_MISSED)


@contextlib.contextmanager
def _reported_if_missing() -> Generator[None]:
    try:
        yield
    except NotInstalled as error:
        print(f"router_cost: measured without a peer: {error}", file=sys.stderr)


async def _measure(sides: list[Side], plan: Plan, done: Callable[[StreamsReport], None]) -> None:
    """Calls `done` for each number of streams, as it is finished."""
    async with contextlib.AsyncExitStack() as stack:
        for side in sides:
            stack.push_async_callback(side.stop)
            await side.start()
        client, _ = await Child.start("benchmarks.router_cost.client", ["--folder", str(sides[0].folder)])
        stack.push_async_callback(client.stop)
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("streaming in turns", total=len(plan.streams) * plan.rounds * len(sides))
        for side in sides:
            await _phase(client, side, plan, 1, 0.0)  # warm
        for streams in plan.streams:
            rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
            for number in range(plan.rounds):
                for ours in order(number):
                    for side in sides[:1] if ours else sides[1:]:
                        rounds[side.name].append(await _round(client, side, plan, streams))
                        bar.advance(task)
            ours_first, theirs = rounds[sides[0].name], [each for side in sides[1:] for each in rounds[side.name]]
            done(StreamsReport(streams=streams, ours=ours_first, theirs=theirs))


async def _round(client: Child, side: Side, plan: Plan, streams: int) -> Round:
    flooded = await _phase(client, side, plan, streams, 0.0)
    paced = await _phase(client, side, plan, streams, plan.pace_s)
    half_load = await _phase(client, side, plan, streams, streams / (flooded.tokens_per_s / 2))
    return Round(flooded=flooded, paced=paced, half_load=half_load)


async def _phase(client: Child, side: Side, plan: Plan, streams: int, pace_s: float) -> Phase:
    requests = streams * max(1, math.ceil(plan.fewest_tokens / (plan.tokens * streams)))
    assert side.worker is not None
    await side.worker.ask({"pace_s": pace_s}, ASK_TIMEOUT_S)
    before_s = cpu_s(side.pid)
    seen = await client.ask(
        {
            "url": side.url,
            "model": side.model,
            "streams": streams,
            "requests": requests,
            "tokens": plan.tokens,
            "spread_s": plan.tokens * pace_s,
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
