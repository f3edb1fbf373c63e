"""Load under kills: so many requests open at all times, a random worker killed every few seconds.

    make chaos-load                                        five minutes; the report goes to chaos/load.json
    PYTHONPATH=.:tests/cluster python tests/chaos/load.py --minutes 5 --out chaos

Every answer is compared with that of one undisturbed process; the router's outcomes with what the clients saw, its bill
with what the engines computed; memory and descriptors of the processes that live on are watched. Ends with 0 when all of it is as
promised, 1 when not.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from chaos_asks import ChaosAsk, OneProcess, Wanted, plain_ask
from chaos_bill import Bill, settled_bill
from chaos_clients import Clients, Said
from chaos_watch import Watch
from cluster_harness import ClusterSpec, RunningCluster, WorkerView
from tokenizers import Tokenizer

from benchmarks.paired import Machine
from benchmarks.quantiles import Spread
from engine.tiny import write_tiny_llama

WANTED_SUCCESS = 0.999
DIFFERENT_ASKS = 192
HTTP_SHARE = 0.25
BACK_TIMEOUT_S = 90.0
END_TIMEOUT_S = 150.0
GROWN_RSS_MIB = 24.0
"""More is a leak: at this load, one lost KiB per request would be as much in five minutes."""
GROWN_DESCRIPTORS = 8
"""Workers that come and go move the count by a few sockets."""

LIVING_DECODES = 2
"""A kill waits until there are so many: with the last one dead the cluster has no capacity, which is not what is tried here.
On a machine that replaces a worker within the time between two kills it never waits."""

LONG_LIVED = ("launcher", "router")

NICE_BY = 5
"""All that serves yields to a process that starts (three to one): with fewer cores than processes a replacement would else take
longer than the time between two kills, however the cluster handles them."""

SETTINGS: dict[str, Any] = {
    "engine__dtype": "float32",
    "engine__kv_memory_bytes": "128MiB",
    "engine__max_sequences": 64,
    "engine__prefix_cache": False,  # the same prompts come again: each is to be computed and moved each time
    "decode__local_prefill_max_tokens": 0,
    "transfer__landing_bytes": "32MiB",
    "router__prefix_index_entries": 1024,
    "cluster__deaths_per_minute": 1000,
}


@dataclass(frozen=True)
class Plan:
    seconds: float
    open_requests: int
    kill_every_s: float
    seed: int
    prefill: int
    decode: int
    settings: tuple[str, ...]


@dataclass
class Kill:
    """One worker's death, and how long until its successor had joined; None: not before the end."""

    at_s: float
    worker: str
    back_s: float | None = None


@dataclass
class Load:
    """Keeps requests open until told to stop."""

    plan: Plan
    cluster: RunningCluster
    asks: list[ChaosAsk]
    said: list[Said] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)
    postponed_s: float = 0.0
    """For which no worker was killed because too few were left to go on with what one had."""
    _is_over: bool = False

    async def run(self) -> None:
        async with Clients(self.cluster.grpc, self.cluster.url, self.cluster.model) as clients:
            askers = [asyncio.create_task(self._ask_on(clients, number)) for number in range(self.plan.open_requests)]
            others = [asyncio.create_task(each) for each in (self._kill_on(), self._yield_on(), self._show())]
            await asyncio.sleep(self.plan.seconds)
            self._is_over = True
            await asyncio.wait_for(asyncio.gather(*askers), END_TIMEOUT_S)
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            for task in others:
                if not task.cancelled() and (error := task.exception()):
                    raise error

    async def _yield_on(self) -> None:
        """Renices the workers that serve, whenever there are new ones."""
        reniced: set[str] = set()
        while True:
            for worker in await self._living():
                if worker.incarnation not in reniced:
                    reniced.add(worker.incarnation)
                    _renice(worker.pid)
            await asyncio.sleep(0.5)

    async def _ask_on(self, clients: Clients, number: int) -> None:
        draw = Random(f"{self.plan.seed} client {number}")
        while not self._is_over:
            ask = draw.choice(self.asks)
            self.said.append(await clients.ask(ask, over_http=draw.random() < HTTP_SHARE))

    async def _kill_on(self) -> None:
        draw = Random(f"{self.plan.seed} kills")
        async with asyncio.TaskGroup() as watchers:
            due_s = time.monotonic()
            while not self._is_over:
                due_s += self.plan.kill_every_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                living = await self._living()
                while sum(worker.role == "decode" for worker in living) < LIVING_DECODES and not self._is_over:
                    self.postponed_s += 0.5
                    await asyncio.sleep(0.5)
                    living = await self._living()
                if self._is_over:
                    break
                due_s = max(due_s, time.monotonic() - self.plan.kill_every_s)  # what was postponed is not made up for
                victim = draw.choice(living)
                self.cluster.note_pids()
                with contextlib.suppress(ProcessLookupError):  # it died a moment ago
                    os.kill(victim.pid, signal.SIGKILL)
                kill = Kill(round(time.monotonic() - self.started_s, 2), victim.name)
                self.kills.append(kill)
                watchers.create_task(self._see_back(kill, victim.incarnation))

    async def _living(self) -> list[WorkerView]:
        """Nobody while the router takes too long to say."""
        try:
            return await self.cluster.workers()
        except httpx.HTTPError:
            return []

    async def _see_back(self, kill: Kill, dead: str) -> None:
        killed_s = time.monotonic()
        while time.monotonic() < killed_s + BACK_TIMEOUT_S and kill.back_s is None:
            await asyncio.sleep(0.25)
            joined = {worker.name: worker.incarnation for worker in await self._living()}
            if joined.get(kill.worker, dead) != dead:
                kill.back_s = round(time.monotonic() - killed_s, 2)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(10)
            good = sum(one.is_success for one in self.said)
            print(
                f"{time.monotonic() - self.started_s:5.0f} s  {len(self.said)} ended, {len(self.said) - good} without success, "
                f"{len(self.kills)} kills",
                flush=True,
            )


def _renice(pid: int) -> None:
    """Every thread: Linux counts niceness by thread."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was killed meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE_BY)


def differences(load: Load, wanted: list[list[Wanted]], one_process: OneProcess, tokenizer: Tokenizer) -> list[str]:
    """Answers that are not what one process says: a missing token, one twice, another."""
    wrong = []
    for said in load.said:
        expected = wanted[said.ask.number][0]
        if said.over_http:
            # What is left of a character at the end is not sent.
            text, got = (each.rstrip("\ufffd") for each in (tokenizer.decode(list(expected.token_ids)), said.text))
            if not (text == got if said.is_success else text.startswith(got)):
                wrong.append(f"ask {said.ask.number} over HTTP: {got[-40:]!r} where one process has {text[-40:]!r}")
        else:
            difference = one_process.difference(said.ask.single(0), said.tokens.get(0, []), expected, is_whole=said.is_success)
            if difference:
                wrong.append(f"ask {said.ask.number}: {difference}")
    return wrong


def outcome_differences(load: Load, outcomes: dict[str, int]) -> list[str]:
    """The router's outcomes against the clients'. One whose answer ended as its client left may be counted either way."""
    seen = Counter("success" if said.is_success else "failure" for said in load.said)
    counted = Counter[str]()
    for outcome, count in outcomes.items():
        counted["success" if outcome in ("stop", "length") else "failure"] += count
    return [] if seen == counted else [f"the clients saw {dict(seen)}, the router counted {outcomes}"]


@dataclass
class After:
    """What the router says when all have ended."""

    outcomes: dict[str, int]
    bill: Bill


async def measure(plan: Plan, cluster: RunningCluster, asks: list[ChaosAsk]) -> tuple[Load, list[str], Watch, After]:
    load = Load(plan, cluster, asks)
    os.nice(NICE_BY)
    async with Watch(cluster) as watch:
        await load.run()
    wrong: list[str] = []
    try:
        await cluster.assert_idle(60)
    except AssertionError as error:
        wrong.append(str(error)[:2000])
    bill, unbalanced = await settled_bill(cluster)
    return load, wrong + unbalanced, watch, After(await cluster.outcomes(), bill)


def report(load: Load, wrong: list[str], watch: Watch, after: After, machine: Machine) -> dict[str, Any]:
    failed = [said for said in load.said if not said.is_success]
    rate = 1 - len(failed) / max(1, len(load.said))
    if rate < WANTED_SUCCESS:
        wrong = [*wrong, f"success rate {rate:.5f}, wanted {WANTED_SUCCESS}"]
    trends = [trend for trend in watch.trends() if trend.name in LONG_LIVED]
    wrong = [*wrong, *(each for trend in trends for each in trend.grown(GROWN_RSS_MIB, GROWN_DESCRIPTORS))]
    return {
        "machine": machine.model_dump(),
        "plan": dataclasses.asdict(load.plan),
        "requests": len(load.said),
        "success_rate": rate,
        "failures": dict(Counter(said.ended for said in failed).most_common(20)),
        "outcomes": after.outcomes,
        "bill": after.bill,
        "tokens": sum(said.num_tokens for said in load.said),
        "kills": len(load.kills),
        "postponed_s": load.postponed_s,
        "kills_by_worker": dict(Counter(kill.worker for kill in load.kills)),
        "back_s": _spread([kill.back_s for kill in load.kills if kill.back_s is not None]),
        "not_back": sum(kill.back_s is None for kill in load.kills),
        "ttft_s": _spread([said.ttft_s for said in load.said if said.ttft_s is not None]),
        "longest_pause_s": _spread([said.longest_pause_s for said in load.said if said.is_success]),
        "processes": [dataclasses.asdict(trend) for trend in trends],
        "wrong": wrong[:50],
        "num_wrong": len(wrong),
    }


def _spread(samples: list[float]) -> dict[str, float] | None:
    spread = Spread.of(samples)
    return spread and {name: round(value, 3) for name, value in spread.model_dump().items()}


def run(plan: Plan, out: Path) -> int:
    machine = Machine.here()
    out.mkdir(parents=True, exist_ok=True)
    model = write_tiny_llama(out / "model", layers=2)
    draw = Random(f"{plan.seed} asks")
    asks = [plain_ask(draw, number) for number in range(DIFFERENT_ASKS)]
    one_process = OneProcess(model)
    wanted = [[each] for each in one_process.answers([ask.single(0) for ask in asks])]
    spec = ClusterSpec(model, plan.prefill, plan.decode).with_settings(**SETTINGS)
    spec = dataclasses.replace(spec, settings=(*spec.settings, *(tuple(each.split("=", 1)) for each in plan.settings)))
    cluster = RunningCluster.start(spec, out / "load.log")
    try:
        load, wrong, watch, after = asyncio.run(measure(plan, cluster, asks))
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        wrong += differences(load, wanted, one_process, tokenizer)
        wrong += outcome_differences(load, after.outcomes)
        try:
            cluster.stop()
        except AssertionError as error:
            wrong.append(str(error)[:2000])
    except BaseException:
        cluster.kill()
        raise
    found = report(load, wrong, watch, after, machine)
    (out / "load.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("machine", "plan")}, indent=1))
    return 1 if found["wrong"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--open", type=int, default=64, help="requests open at all times")
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="the same seed asks the same and draws the same victims")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the cluster")
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="folder of the report")
    given = parser.parse_args()
    plan = Plan(given.minutes * 60, given.open, given.kill_every, given.seed, given.prefill, given.decode, tuple(given.set))
    return run(plan, given.out)


if __name__ == "__main__":
    sys.exit(main())
