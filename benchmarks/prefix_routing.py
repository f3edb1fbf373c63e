"""What placing by prefix saves against placing in turn: a trace of conversations that share system prompts, through both policies.

Two routers, one of each policy, serve the same prefill and decode workers. In each round both get a trace of the same shape, one
after the other, in alternating order and with tokens of their own: neither finds what the other left in the workers' caches.

    python -m benchmarks.prefix_routing --rounds 3 --json FILE
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import httpx
import typer

from benchmarks.cluster import read_settings, vocabulary_size
from benchmarks.completions import Answer, CompletionRequest, complete
from benchmarks.conversations import Conversation, TraceShape, conversations
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings
from benchmarks.paired import order
from benchmarks.prefix_report import OURS, THEIRS, Pass, PrefixReport, render
from benchmarks.scrape import Scraper, increase
from benchmarks.shared_pools import SharedPools
from benchmarks.terminal import progress_bar

REQUEST_TIMEOUT_S = 120.0


def run(
    rounds: Annotated[int, typer.Option(min=1, help="Passes over a trace, for each policy.")] = 3,
    systems: Annotated[int, typer.Option(min=1, help="Different system prompts.")] = 12,
    users: Annotated[int, typer.Option(min=1, help="Conversations per system prompt.")] = 3,
    turns: Annotated[int, typer.Option(min=1, help="Requests per conversation.")] = 3,
    system_tokens: Annotated[int, typer.Option(min=1)] = 512,
    message_tokens: Annotated[int, typer.Option(min=1)] = 32,
    answer_tokens: Annotated[int, typer.Option(min=1)] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 4,
    prefill: Annotated[int, typer.Option(min=1, help="Prefill workers.")] = 4,
    decode: Annotated[int, typer.Option(min=1, help="Decode workers.")] = 2,
    model: ModelFolder = None,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same traces.")] = 0,
    limit_s: Annotated[float, typer.Option("--limit", min=1, help="Seconds after which no further round begins.")] = 300.0,
    json_file: JsonFile = None,
) -> None:
    """Compare prefix-aware placement with round robin, in turns.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("prefix_routing")
    shape = TraceShape(
        systems=systems,
        users=users,
        turns=turns,
        system_tokens=system_tokens,
        message_tokens=message_tokens,
        answer_tokens=answer_tokens,
    )
    passes: dict[str, list[Pass]] = {OURS: [], THEIRS: []}
    with measurement.running():
        # Where short rests are computed is not the question here, and what workers learn they would learn from both.
        usual = ["decode.local_prefill_max_tokens=16", "engine.kv_memory_bytes=256MiB", "transfer.landing_bytes=64MiB"]
        settings = read_settings(model, [*usual, *(setting or [])])
        routers = {name: {"policy": name} for name in (OURS, THEIRS)}
        with SharedPools(settings, routers, prefill, decode) as pools:
            asyncio.run(_measure(pools, shape, passes, rounds, concurrency, vocabulary_size(settings), seed, limit_s))
    whole = min(len(one) for one in passes.values())
    report = PrefixReport(
        machine=measurement.machine,
        shape=shape,
        prefill_workers=prefill,
        decode_workers=decode,
        concurrency=concurrency,
        ours=passes[OURS][:whole],
        theirs=passes[THEIRS][:whole],
    )
    measurement.count_errors(report.errors)
    if not report.ours:
        measurement.failed("no round was complete")
    measurement.end(report, render, json_file)


async def _measure(
    pools: SharedPools,
    shape: TraceShape,
    passes: dict[str, list[Pass]],
    rounds: int,
    concurrency: int,
    vocabulary: int,
    seed: int,
    limit_s: float,
) -> None:
    """Fills `passes` round by round, so that an interrupted run keeps what it has."""
    deadline = time.monotonic() + limit_s
    warm = TraceShape(systems=4, users=2, turns=1, system_tokens=64, message_tokens=32, answer_tokens=4)
    for name in passes:  # connections, introductions and the first measurements; not counted
        await _pass(pools, name, conversations(warm, f"{seed} warm {name}", vocabulary), warm, concurrency, lambda: None)
    with progress_bar() as bar:
        task = bar.add_task("prefix-aware and round robin", total=2 * rounds * shape.requests)
        for number in range(rounds):
            if number and time.monotonic() > deadline:
                print(f"prefix_routing: {number} of {rounds} rounds, the time was up", file=sys.stderr)
                return
            for ours in order(number):
                name = OURS if ours else THEIRS
                trace = conversations(shape, f"{seed} {number} {name}", vocabulary)
                passes[name].append(await _pass(pools, name, trace, shape, concurrency, lambda: bar.advance(task)))


async def _pass(
    pools: SharedPools,
    policy: str,
    trace: Sequence[Conversation],
    shape: TraceShape,
    concurrency: int,
    advance: Callable[[], None],
) -> Pass:
    """The whole trace through one router: so many conversations at a time, each turn when the one before was answered."""
    url = pools.urls[policy]
    answers: list[Answer] = []
    waiting = iter(trace)

    async def user() -> None:
        for conversation in waiting:
            for prompt in conversation.prompts():
                request = CompletionRequest(pools.model, prompt, shape.answer_tokens)
                answers.append(await complete(url, request, REQUEST_TIMEOUT_S))
                advance()

    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:
        scraper = Scraper(http, pools.workers)
        before = await scraper.read()
        started = time.perf_counter()
        await asyncio.gather(*(user() for _ in range(concurrency)))
        duration_s = time.perf_counter() - started
        after = await scraper.read()
    return Pass.of(answers, increase(before.samples, after.samples), duration_s)


if __name__ == "__main__":
    typer.run(run)
