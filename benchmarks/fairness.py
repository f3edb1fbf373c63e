"""What one tenant's flood does to another's first tokens: a router as `serval up` starts it, with keys and limits, before workers
that have a worker's limits and no model (benchmarks/limited_worker.py).

In each round the measured tenant sends at its own pace, in turns alone, beside a tenant that keeps its limit, beside the same at
20 times its limit, and beside one that has no limit and asks for more than the cluster has. The first half of each phase's first
seconds is left out: what the offender has saved up by being quiet, a minute's worth at most, is spent by then.

    python -m benchmarks.fairness --rounds 5 --json FILE
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from benchmarks.cluster import Place, end, launch, read_settings, settings_at, vocabulary_size
from benchmarks.completions import Answer, CompletionRequest, complete
from benchmarks.fairness_report import KINDS, FairnessReport, Kind, Phase, render
from benchmarks.http_stream import Access
from benchmarks.measurement import JsonFile, Measurement, Settings
from benchmarks.router_cost.pipe import Child
from benchmarks.terminal import progress_bar
from benchmarks.workload import poisson_arrivals_s, prompts

START_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 60.0
TENANTS = ("measured", "limited", "unlimited")


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    rounds: int
    seconds: float
    settle_s: float
    rate: float
    limit_per_minute: int
    times: int
    workers: int
    input_tokens: int
    output_tokens: int


def run(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each has every phase once.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Measured, per phase.")] = 8.0,
    settle: Annotated[float, typer.Option(min=0, help="Seconds before that, not measured.")] = 3.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second of the measured tenant, Poisson.")] = 20.0,
    limit: Annotated[int, typer.Option(min=1, help="The offender's requests_per_minute.")] = 300,
    times: Annotated[int, typer.Option(min=2, help="How many times its limit it sends.")] = 20,
    workers: Annotated[int, typer.Option(min=1)] = 4,
    input_tokens: Annotated[int, typer.Option("--isl", min=1)] = 256,
    output_tokens: Annotated[int, typer.Option("--osl", min=1)] = 16,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; its tokenizer is used. Default: the embedded model's.")
    ] = None,
    setting: Settings = None,
    json_file: JsonFile = None,
) -> None:
    """Measure what one tenant's flood does to another's time to first token.

    Exit status: 0 when the target is met, 1 when it is missed, 2 when it could not be measured.
    """
    measurement = Measurement("fairness")
    plan = Plan(rounds, seconds, settle, rate, limit, times, workers, input_tokens, output_tokens)
    phases: list[Phase] = []
    with measurement.running():
        asyncio.run(_measure(read_settings(model, setting or []), plan, phases))
    report = FairnessReport(
        machine=measurement.machine,
        workers=workers,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rate=rate,
        limit_per_minute=limit,
        times=times,
        phases=phases,
    )
    measurement.count_errors(report.errors, "requests of the measured tenant")
    measurement.end(report, render, json_file)


async def _measure(settings: dict[str, Any], plan: Plan, phases: list[Phase]) -> None:
    """Fills `phases` as they are done, so that an interrupted run keeps what it has."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serval-bench-fairness-")))
        keys = {tenant: secrets.token_urlsafe(32) for tenant in TENANTS}
        keys_file = folder / "keys.yaml"
        keys_file.write_text(json.dumps(_keys_file(keys, plan)))  # JSON is YAML too
        settings["router"]["keys_file"] = str(keys_file)
        router = launch("router", "router", [], settings_at(settings, Place(), Place()), folder, Place())
        stack.callback(end, [router])
        ready = await asyncio.to_thread(router.wait_ready, time.monotonic() + START_TIMEOUT_S)
        name, vocabulary, url = settings["router"]["model"], vocabulary_size(settings), f"http://{ready['http']}"
        words = ["--router", ready["link"], "--model", name, "--workers", str(plan.workers)]
        worker, _ = await Child.start("benchmarks.limited_worker", words)
        stack.push_async_callback(worker.stop)
        floods: dict[Kind, Child] = {}
        sides: tuple[tuple[Kind, str], ...] = (("at its limit", "limited"), ("flood without a limit", "unlimited"))
        for kind, tenant in sides:
            words = ["--url", url, "--model", name, "--key", keys[tenant], "--vocabulary", str(vocabulary)]
            words += ["--isl", str(plan.input_tokens), "--osl", str(plan.output_tokens)]
            child, _ = await Child.start("benchmarks.flood", words)
            stack.push_async_callback(child.stop)
            floods[kind] = child
        floods["flood"] = floods["at its limit"]
        measured = _Measured(url, name, Access(keys["measured"]), vocabulary, plan)
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("in turns", total=plan.rounds * len(KINDS))
        # A minute's worth, saved up before anything was sent, is spent here.
        await _phase(
            "flood", floods["flood"], measured, plan, plan.limit_per_minute / (plan.limit_per_minute * plan.times / 60) + 1
        )
        for number in range(plan.rounds):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                phases.append(await _phase(kind, floods.get(kind), measured, plan, plan.seconds))
                bar.advance(task)


async def _phase(kind: Kind, flood: Child | None, measured: "_Measured", plan: Plan, seconds: float) -> Phase:
    rates = {"at its limit": 1, "flood": plan.times, "flood without a limit": plan.times}
    if flood is not None:
        await flood.ask({"rate": plan.limit_per_minute / 60 * rates[kind]}, ASK_TIMEOUT_S)
    answers = await measured.send(plan.settle_s + seconds)
    ends = (await flood.ask({"rate": 0}, ASK_TIMEOUT_S))["ends"] if flood is not None else {}
    good = [answer.time_to_first_token_s for due_s, answer in answers if answer.error is None and due_s >= plan.settle_s]
    errors = [answer.error for _, answer in answers if answer.error is not None]
    return Phase(kind=kind, seconds=plan.settle_s + seconds, time_to_first_token_s=good, errors=errors, offender=ends)


class _Measured:
    """The tenant whose first tokens are measured, in this process."""

    def __init__(self, url: str, model: str, access: Access, vocabulary: int, plan: Plan) -> None:
        self._url = url
        self._model = model
        self._access = access
        self._vocabulary = vocabulary
        self._plan = plan
        self._random = Random(0)

    async def send(self, seconds: float) -> list[tuple[float, Answer]]:
        """Open loop. Each answer with when, in seconds from the start, its request was due."""
        plan = self._plan
        seed, count = self._random.randrange(2**32), int(2 * plan.rate * seconds) + 10
        due = [due_s for due_s in poisson_arrivals_s(seed, count, plan.rate) if due_s < seconds]
        asked = prompts(seed, len(due), plan.input_tokens, self._vocabulary)
        start_s = time.perf_counter()

        async def ask(due_s: float, prompt: Any) -> tuple[float, Answer]:
            await asyncio.sleep(start_s + due_s - time.perf_counter())
            request = CompletionRequest(self._model, prompt, plan.output_tokens)
            return due_s, await complete(self._url, request, REQUEST_TIMEOUT_S, start_s + due_s, self._access)

        return list(await asyncio.gather(*(ask(due_s, prompt) for due_s, prompt in zip(due, asked, strict=True))))


def _keys_file(keys: dict[str, str], plan: Plan) -> dict[str, Any]:
    hashed = [
        {"name": tenant, "tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest()} for tenant, key in keys.items()
    ]
    limits = {"measured": {}, "limited": {"requests_per_minute": plan.limit_per_minute}, "unlimited": {}}
    return {"keys": hashed, "tenants": limits}


if __name__ == "__main__":
    typer.run(run)
