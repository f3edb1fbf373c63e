"""Fuzz: what every parser and every port of a cluster does with inputs that are nearly right.

    make chaos-fuzz                                        minutes; the report goes to chaos/fuzz.json
    PYTHONPATH=.:tests/cluster:tests/integration python tests/fuzz/fuzz.py --inputs 100000 --seed 3 --out chaos

Each input must be taken or refused in words: no crash, no hang, no internal error. Afterwards the same processes are there, with
the memory and the descriptors that they had after valid requests of every kind and a first tenth of the inputs, all KV blocks are
free or cached, and requests are answered.
The same seed makes the same inputs. Ends with 0 when all of it is so, 1 when not.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import psutil
from cluster_clients import Ask, grpc_client
from cluster_harness import ClusterSpec, RunningCluster
from fuzz_mutate import (
    BODIES,
    FROM_WORKER,
    GENERATE,
    HEADS,
    HELLO,
    MODEL,
    PREFILL_STREAMS,
    PREFILL_UNARY,
    STREAMS,
    UNARY,
    Mutator,
)
from fuzz_network import LINK, MEMBER, Tally, fuzz_bodies, fuzz_grpc, fuzz_heads, fuzz_link
from fuzz_parsers import fuzz_by_change, fuzz_by_hypothesis
from fuzz_transport import fuzz_metadata, fuzz_notifications

from benchmarks.paired import Machine
from engine.tiny import write_tiny_llama
from protocol import cluster_pb2, serval_pb2

SHARES = {
    "parsers by hypothesis": 0.04,
    "parsers by change": 0.56,
    "notifications": 0.12,
    "metadata": 0.03,
    "network": 0.25,
}
CONTEXT = 64
"""Tokens: whatever a changed request asks for, its answer is short."""
GROWN_RSS_MIB = 16.0
"""After the warm-up. 24,750 inputs that leave a KiB each would be 24."""
GROWN_DESCRIPTORS = 8
ENOUGH = 200
"""Inputs of one surface, of which some must be taken."""
WARM_UP = 600
"""Valid requests before memory is looked at: what a process makes for the first of each kind and of each size of a batch it keeps.
A worker that computed 500 prompts has it all (docs/reliability.md)."""


def fuzz_spec(model: Path) -> ClusterSpec:
    return ClusterSpec(model).with_settings(
        engine__dtype="float32",
        engine__kv_memory_bytes="8MiB",
        engine__max_sequences=16,
        engine__check_integrity=True,
        transfer__landing_bytes="2MiB",
        router__max_model_len=CONTEXT,
        decode__local_prefill_max_tokens=0,
    )


class Network:
    """All ports of one cluster. Its processes must be the same at the end."""

    def __init__(self, cluster: RunningCluster, seed: int, warm_up: int) -> None:
        self._cluster = cluster
        self._seed = seed
        self._warm_up = warm_up
        self.tally = Tally()

    async def run(self, count: int) -> dict[str, Any]:
        """Raises AssertionError for what must not be."""
        await self._cluster.assert_idle()
        pids = self._pids()
        await self._ask_as_usual()
        await self._round(count // 10, "first")
        before = self._use()
        await self._round(count - count // 10, "rest")
        await self._cluster.assert_idle(60)
        after = self._use()
        assert self._pids() == pids, f"processes died of it: {pids} are {self._pids()} now"
        for pid, (name, rss, descriptors) in after.items():
            assert rss < before[pid][1] + GROWN_RSS_MIB, f"{name}: RSS grew from {before[pid][1]:.0f} to {rss:.0f} MiB"
            assert descriptors <= before[pid][2] + GROWN_DESCRIPTORS, (
                f"{name}: {before[pid][2]} descriptors, then {descriptors}"
            )
        assert "internal" not in await self._cluster.outcomes(), await self._cluster.outcomes()
        assert not self.tally.wrong, "\n".join(self.tally.wrong[:20])
        link = self.tally.answers[LINK]
        bodies = {path: self.tally.answers[f"POST {path}"] for path in BODIES}
        untaken = [path for path, answers in bodies.items() if answers.total() > ENOUGH and not answers["200"]]
        assert not untaken, f"not one input was taken by {untaken}: nothing behind their first check was reached"
        members = sum(count for answer, count in link.items() if answer.endswith(MEMBER))
        assert members > link.total() / 2, f"few of those at the workers' stream were welcome first: {link}"
        async with grpc_client(self._cluster) as api:
            answer = await api.ask(Ask.greedy(b"still there?", 4, ignore_eos=True))
        assert len(answer.token_ids) == 4
        return {"use": {name: [before[pid][1:], [rss, fds]] for pid, (name, rss, fds) in after.items()}}

    async def _ask_as_usual(self) -> None:
        """Valid requests of every kind, with prompts of every length. What tools add to a prompt is more than CONTEXT."""
        usual = Tally()
        draw = Random(f"{self._seed} as usual")
        kinds = itertools.cycle(kind for kind in GENERATE if not kind.chat.tools)
        asks = [serval_pb2.GenerateRequest() for _ in range(self._warm_up)]
        for ask, kind in zip(asks, kinds, strict=False):
            ask.CopyFrom(kind)
            if ask.HasField("token_ids"):
                ask.token_ids.ids[:] = [draw.randrange(256) for _ in range(draw.randint(1, CONTEXT - 2))]
        async with grpc.aio.insecure_channel(self._cluster.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            (method,) = STREAMS
            await fuzz_grpc(channel, method, True, (ask.SerializeToString() for ask in asks), usual)
        assert usual.answers == {method: Counter(OK=len(asks))}, (usual.answers, usual.wrong)

    async def _round(self, count: int, name: str) -> None:
        host, _, port = self._cluster.url.removeprefix("http://").rpartition(":")
        address = (host, int(port))
        (prefill,) = await self._cluster.workers("prefill")
        link = self._link_address()
        surfaces = len(UNARY) + len(STREAMS) + len(PREFILL_UNARY) + len(PREFILL_STREAMS) + 1 + len(BODIES) + 2
        share = max(1, count // surfaces)
        make = Mutator(f"{self._seed} {name}")
        for where, unary, streams in ((self._cluster.grpc, UNARY, STREAMS), (prefill.address, PREFILL_UNARY, PREFILL_STREAMS)):
            async with grpc.aio.insecure_channel(where, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                for method, corpus in (unary | streams).items():
                    await fuzz_grpc(channel, method, method in streams, make.of(corpus, share), self.tally)
        async with grpc.aio.insecure_channel(link, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            hellos = await self._hellos()
            corpus = [cluster_pb2.FromWorker(hello=hello).SerializeToString() for hello in hellos]
            corpus += [each.SerializeToString() for each in FROM_WORKER if each.WhichOneof("kind") != "hello"]
            await fuzz_link(channel, hellos, make.of(corpus, share), self.tally)
        for path, bodies in BODIES.items():
            await fuzz_bodies(address, path, make.json_bodies(bodies, share), self.tally)
        await fuzz_heads(address, make.of(HEADS, 2 * share), self.tally)

    async def _hellos(self) -> list[cluster_pb2.Hello]:
        """What workers would say that belong here, by role."""
        hellos = []
        for worker in await self._cluster.workers():
            hello = cluster_pb2.Hello()
            hello.CopyFrom(HELLO)
            hello.role = cluster_pb2.Role.Value(f"ROLE_{worker.role.upper()}")
            hello.model, hello.layout_fingerprint, hello.kv_blocks = self._cluster.model, worker.layout, worker.kv_blocks
            hellos.append(hello)
        return hellos

    def _link_address(self) -> str:
        """The router's port that is neither HTTP's nor its clients'."""
        known = {int(self._cluster.url.rpartition(":")[2]), int(self._cluster.grpc.rpartition(":")[2])}
        listening = {
            one.laddr.port
            for one in psutil.Process(self._cluster.router_pid()).net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
        (port,) = listening - known
        return f"127.0.0.1:{port}"

    def _pids(self) -> dict[int, str]:
        children = psutil.Process(self._cluster.launcher.pid).children()
        return {child.pid: " ".join(child.cmdline()[2:6]) for child in children}

    def _use(self) -> dict[int, tuple[str, float, int]]:
        found = {}
        for pid, name in self._pids().items():
            process = psutil.Process(pid)
            found[pid] = (name, round(process.memory_info().rss / 2**20, 1), process.num_fds())
        return found


def fuzz_network(count: int, seed: int, model: Path, log: Path, warm_up: int = WARM_UP) -> tuple[Tally, dict[str, Any]]:
    cluster = RunningCluster.start(fuzz_spec(model), log)
    network = Network(cluster, seed, warm_up)
    try:
        found = asyncio.run(network.run(count))
        cluster.stop()
    except BaseException:
        cluster.kill()
        raise
    traces = log.read_text(errors="replace").count("Traceback (most recent call last)")
    assert traces == 0, f"{traces} tracebacks in {log}"
    return network.tally, found


def run(inputs: int, seed: int, out: Path, only: str | None = None) -> int:
    machine = Machine.here()
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Any] = {}
    found: dict[str, Any] = {"machine": machine.model_dump(), "seed": seed, "inputs": counts, "wrong": []}

    def part(name: str, act: Callable[[int], Any]) -> None:
        if only not in (None, name):
            return
        started_s = time.monotonic()
        try:
            counts[name] = act(round(inputs * SHARES[name]))
        except Exception as error:  # whatever it is, the other parts are worth running and the report worth writing
            found["wrong"].append(f"{name}: {type(error).__name__}: {str(error)[:3000]}")
        print(f"{name}: {counts.get(name, 'WRONG')}, {time.monotonic() - started_s:.0f} s", flush=True)

    def network(count: int) -> dict[str, Any]:
        tally, use = fuzz_network(count, seed, write_tiny_llama(out / MODEL, layers=2), out / "fuzz.log")
        found.update(use)
        return {surface: dict(answers) for surface, answers in tally.answers.items()}

    part("parsers by change", lambda count: fuzz_by_change(count, seed))
    part("notifications", lambda count: fuzz_notifications(count, seed))
    part("metadata", lambda count: fuzz_metadata(count, seed))
    part("network", network)
    part("parsers by hypothesis", lambda count: fuzz_by_hypothesis(count, seed))
    found["total"] = _total(counts)
    (out / "fuzz.json").write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{found['total']} inputs; " + ("\n".join(found["wrong"]) or "all taken or refused in words, nothing crashed or leaked")
    )
    return 1 if found["wrong"] else 0


def _total(counts: Any) -> int:
    return sum(map(_total, counts.values())) if isinstance(counts, dict) else int(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=110_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SHARES, help="this part alone, with its share of the inputs")
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="folder of the report")
    given = parser.parse_args()
    return run(given.inputs, given.seed, given.out, given.only)


if __name__ == "__main__":
    sys.exit(main())
