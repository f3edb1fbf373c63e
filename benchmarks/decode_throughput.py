"""Decode speed of the cluster against transformers' own `generate`: same weights, dtype, prompts, threads, in turns.

The cluster is one prefill and one decode worker, asked over HTTP; `generate` runs a static batch in a process of its own. Prefill
counts on neither side: the rate is that of tokens while all streams decode. Whoever has not the turn computes nothing.

    python -m benchmarks.decode_throughput --rounds 5 --json FILE
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any

import typer

from benchmarks.cluster import Cluster, Place, environment, read_settings, vocabulary_size
from benchmarks.completions import CompletionRequest, complete
from benchmarks.decode_report import (
    DecodeReport,
    SideFailed,
    StreamsReport,
    batch_tokens_per_second,
    render,
    together_tokens_per_second,
)
from benchmarks.measurement import JsonFile, Measurement, ModelFolder, Settings, numbers
from benchmarks.paired import Paired, order
from benchmarks.terminal import progress_bar
from benchmarks.workload import token_prompt

ANSWER_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S = 180.0
PEER_LINE_BYTES = 1 << 20


def run(
    streams: Annotated[str, typer.Option(help="Numbers of streams.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each; both sides get the same prompts.")] = 5,
    input_tokens: Annotated[int, typer.Option("--isl", min=1, help="Tokens of a prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option("--osl", min=4, help="Tokens of an answer.")] = 128,
    model: ModelFolder = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, on both sides.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker, and of generate.")] = 1,
    setting: Settings = None,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare the cluster's decode speed with transformers' generate, in turns.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("decode_throughput")
    plan = Plan(numbers("--streams", streams), rounds, input_tokens, output_tokens, seed)
    done: list[StreamsReport] = []
    name = str(model or "")
    with measurement.running():
        settings = read_settings(model, [f"engine.dtype={dtype}", f"engine.threads={threads}", *(setting or [])])
        name = settings["router"]["model"]
        with Cluster("decode", settings, Place(), Place(), Place()) as cluster:
            asyncio.run(_measure(cluster, settings, plan, done.append))
    report = DecodeReport(
        machine=measurement.machine,
        model=name,
        dtype=dtype,
        threads=threads,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        streams=done,
    )
    measurement.end(report, render, json_file)


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    streams: tuple[int, ...]
    rounds: int
    input_tokens: int
    output_tokens: int
    seed: int


class Peer:
    """The process of generate_peer.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def rate(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Tokens per second over the batch. Raises SideFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}).encode() + b"\n")
        answer = await self.read(ANSWER_TIMEOUT_S)
        return batch_tokens_per_second(answer["token_s"], len(prompts))

    async def read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
            return dict(json.loads(line))
        except TimeoutError:
            raise SideFailed(f"generate: no answer within {timeout_s:g} s") from None
        except ValueError as error:
            raise SideFailed(f"generate: ended or answered nonsense ({error})") from error


@contextlib.asynccontextmanager
async def _peer(settings: Mapping[str, Any]) -> AsyncIterator[Peer]:
    threads = str(settings["engine"]["threads"])
    command = [sys.executable, "-m", "benchmarks.generate_peer", "--model", settings["model"], "--threads", threads]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--dtype",
        settings["engine"]["dtype"],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=PEER_LINE_BYTES,
        env=environment(settings["engine"]["threads"]),
        start_new_session=True,
    )
    try:
        peer = Peer(process)
        await peer.read(LOAD_TIMEOUT_S)
        yield peer
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it holds nothing that has to be put away
        await process.wait()


async def _measure(cluster: Cluster, settings: Mapping[str, Any], plan: Plan, done: Callable[[StreamsReport], None]) -> None:
    """Calls `done` for each number of streams, as it is finished."""
    random, vocabulary = Random(plan.seed), vocabulary_size(settings)
    bar = progress_bar()
    async with _peer(settings) as peer:
        with bar:
            task = bar.add_task("decoding in turns", total=len(plan.streams) * (plan.rounds + 1) * 2)

            async def turn(ours: bool, prompts: list[list[int]]) -> float:
                rate = await (
                    _cluster_rate(cluster.url, cluster.model, prompts, plan) if ours else peer.rate(prompts, plan.output_tokens)
                )
                bar.advance(task)
                return rate

            for streams in plan.streams:
                rates: dict[bool, list[float]] = {True: [], False: []}
                for number in range(-1, plan.rounds):  # the round before the first warms up
                    prompts = [token_prompt(random, plan.input_tokens, vocabulary) for _ in range(streams)]
                    for ours in order(number):
                        rates[ours].append(await turn(ours, prompts))
                done(StreamsReport(streams=streams, tokens_per_second=Paired.of(rates[True][1:], rates[False][1:])))


async def _cluster_rate(url: str, model: str, prompts: list[list[int]], plan: Plan) -> float:
    requests = [CompletionRequest(model, prompt, plan.output_tokens) for prompt in prompts]
    return together_tokens_per_second(await asyncio.gather(*(complete(url, request, ANSWER_TIMEOUT_S) for request in requests)))


if __name__ == "__main__":
    typer.run(run)
