"""One trial of one cell: bring requests into the state, see that they are, hit the process, watch what becomes of everybody."""

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from cluster_clients import Ask
from matrix_cells import STOP_S, Cell, Fault, Victim
from matrix_client import Client
from matrix_cluster import DECODE_SEQUENCES, ROUTERS, MatrixCluster
from matrix_expected import Expected
from matrix_judge import Asked, judge, judge_counts
from matrix_places import is_unplugged
from matrix_result import Trial
from matrix_until import LOOK_PERIOD_S, until

from protocol.sampling import SamplingParams

REACH_TIMEOUT_S = 20.0
COMPANY_S = 1.0
"""Given to the others to come to the same state, once one is there."""
EXIT_TIMEOUT_S = 45.0
"""A worker's drain and stop, as shipped, take 40 s at most."""
END_TIMEOUT_S = 120.0
BALANCE_TIMEOUT_S = 45.0
"""Longer than transfer.renew_after_s: landing blocks whose writer cannot say that it has ended come back by then."""

ANSWER_TOKENS = 64
TOP_K = 4
"""Drawn from so few that what one process tells of a token (matrix_ties.py) is all of its distribution."""
AFTER = 4
AFTER_TOKENS = 8
FILLER_TOKENS = 96
"""Enough to last while others wait behind them, at one token per slow step."""


class NotReached(Exception):
    """The requests did not come to the state, so nothing was shown."""


async def run_trial(cell: Cell, repeat: int, cluster: MatrixCluster, expected: Expected) -> Trial:
    """Leaves the cluster whole and balanced, or says in `wrong` that it is not."""
    run = _Run(Trial(cell, repeat), cluster, expected)
    began = time.monotonic()
    clock = asyncio.create_task(_watch_clock(run.trial), name="clock")
    try:
        await run.run()
    except NotReached as error:
        run.trial.wrong.append(f"the state was not reached: {error}")
    except Exception as error:  # whatever it is, the cell did not pass
        run.trial.wrong.append(f"{type(error).__name__}: {error}")
    finally:
        await run.clean_up()
        clock.cancel()
        run.trial.seconds = round(time.monotonic() - began, 2)
    return run.trial


class _Run:
    def __init__(self, trial: Trial, cluster: MatrixCluster, expected: Expected) -> None:
        self.trial = trial
        self._cell = trial.cell
        self._cluster = cluster
        self._expected = expected
        self._draw = Random(f"{trial.cell} {trial.repeat}")
        self._lengths = iter(self._draw.sample(range(150, 230), 32))
        self._asked = Asked()
        self._counted: dict[str, tuple[int, dict[str, int]]] = {}
        """By router: its process, and the requests that it had ended before."""
        self._names: dict[str, str] = {}
        """Of workers, by incarnation."""

    async def run(self) -> None:
        cluster, trial = self._cluster, self.trial
        for router in ROUTERS:
            self._counted[router] = cluster.processes[router].pid, await cluster.outcomes(router)
        self._names = await cluster.names_by_incarnation()
        await self._reach()
        if self._cell.state == "draining":
            cluster.processes[trial.victim].signal(signal.SIGTERM)
            await until(lambda: cluster.is_draining(trial.victim), NotReached("it does not drain"), REACH_TIMEOUT_S)
            assert cluster.processes[trial.victim].is_running, "it ended before the fault"
        hit_at = self._hit()
        try:
            await self._see_hit()
            cluster.let_go()
            await self._heal(hit_at)
            await self._everybody_ends(hit_at)
        finally:
            self._undo()
        await self._become_whole(hit_at)
        await judge(trial, self._asked, self._expected, hit_at)
        await judge_counts(trial, self._asked, cluster, self._counted)

    # ---- into the state

    async def _reach(self) -> None:
        cell, cluster = self._cell, self._cluster
        cluster.hold(cell.point)
        if cell.waits_in_router:
            await self._fill()
            self._asked.clients = [self._ask("router-0", number) for number in range(4)]
            await until(self._is_in_line, NotReached("not in the router's line"), REACH_TIMEOUT_S)
            self._asked.hits = self._asked.clients
            self.trial.victim = "router-0"
            self.trial.evidence["before"] = {"serval_queue_length of router-0": len(self._asked.hits)}
        else:
            await self._ask_all()
            with contextlib.suppress(NotReached):
                await until(self._are_all_there, NotReached("some are elsewhere"), COMPANY_S)
            self._choose_victim(self._told())
        self.trial.hits = len(self._asked.hits)
        self.trial.bystanders = len(self._asked.clients) + len(self._asked.fillers) - len(self._asked.hits)

    async def _ask_all(self) -> None:
        """Returns when one has come to the state. A router that is to be hit is asked first: an engine that holds what
        the other router asked for in its thread would keep this one's requests from the state."""
        first = (0, 2) if self._cell.victim is Victim.ROUTER else range(4)
        clients = {number: self._ask(ROUTERS[number % 2], number) for number in first}
        self._asked.clients = list(clients.values())
        try:
            await until(self._is_reached, NotReached(), REACH_TIMEOUT_S)
        except NotReached:
            raise NotReached(f"the workers tell of {self._cluster.held(self._cell.point)}") from None
        self._asked.clients += [self._ask(ROUTERS[number % 2], number) for number in range(4) if number not in clients]

    async def _fill(self) -> None:
        """Answers of the other router take all places at the decode workers, and router-0 has heard of it."""
        places = 2 * DECODE_SEQUENCES
        self._asked.fillers = [self._ask("router-1", number, FILLER_TOKENS) for number in range(places)]
        full = NotReached("the decode workers are not full")
        await until(lambda: all(filler.has_begun for filler in self._asked.fillers), full, REACH_TIMEOUT_S)

        async def is_known() -> bool:
            workers = await self._cluster.workers("router-0")
            return bool(sum(worker["load"]["running"] for worker in workers.values()) == places)

        await until(is_known, full, REACH_TIMEOUT_S)

    async def _is_in_line(self) -> bool:
        in_line: float = (await self._cluster.scrape("router-0")).sum("serval_queue_length")
        return bool(in_line == len(self._asked.clients))

    def _is_reached(self) -> bool:
        return bool(self._told())

    def _are_all_there(self) -> bool:
        return len(self._told()) == len(self._asked.clients)

    def _told(self) -> dict[int, tuple[str, dict[str, Any]]]:
        """By prompt length: at which process of the victim's role a request is that is in the state, and what was told of it."""
        found = {}
        for facts in self._cluster.held(self._cell.point):
            for client in self._asked.clients:
                if client.prompt_tokens != facts["prompt_tokens"] or not self._is_there(client, facts):
                    continue
                involved = [facts["worker"], self._names.get(facts["peer"], "?"), client.front.router]
                (where,) = [name for name in involved if name.startswith(self._cell.victim)]
                if where != "router-1":  # the one that stays: clients try again there
                    found[client.prompt_tokens] = where, facts
        return found

    def _is_there(self, client: Client, facts: dict[str, Any]) -> bool:
        is_open = client.finish is None and client.error is None
        fits = self._cell.is_there(facts) and self._cell.tokens_fit(len(client.heard_at))
        return is_open and fits

    def _choose_victim(self, told: dict[int, tuple[str, dict[str, Any]]]) -> None:
        """Who has most of them."""
        if not told:
            raise NotReached(f"no longer; the workers tell of {self._cluster.held(self._cell.point)}")
        ((victim, _),) = Counter(where for where, _ in told.values()).most_common(1)
        hit = {prompt: facts for prompt, (where, facts) in told.items() if where == victim}
        self._asked.hits = [client for client in self._asked.clients if client.prompt_tokens in hit]
        self.trial.victim = victim
        self.trial.evidence["before"] = list(hit.values())

    def _ask(self, router: str, number: int, max_tokens: int = ANSWER_TOKENS) -> Client:
        prompt = tuple(self._draw.randrange(256) for _ in range(next(self._lengths)))
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
        if number in (1, 2):
            params = dataclasses.replace(params, temperature=0.8, top_k=TOP_K, seed=self._draw.randrange(1 << 31))
        return Client(Ask(prompt, params), self._cluster.front(router), over_http=number in (2, 3))

    # ---- the fault

    def _hit(self) -> float:
        """Returns when. Between the last look and this nothing can have moved on: the requests are held."""
        process = self._cluster.processes[self.trial.victim]
        hit_at = time.monotonic()
        match self._cell.fault:
            case Fault.KILL:
                process.signal(signal.SIGKILL)
            case Fault.STOP:
                process.signal(signal.SIGSTOP)
            case Fault.TERM:
                process.signal(signal.SIGTERM)
            case Fault.NETWORK:
                assert self._cluster.switch is not None
                self._cluster.switch.pull(process.post.place)
        return hit_at

    async def _see_hit(self) -> None:
        """That it is so, by the kernel's word or its own."""
        process, name = self._cluster.processes[self.trial.victim], self.trial.victim
        looks: dict[Fault, tuple[str, Callable[[], Any]]] = {
            Fault.KILL: ("dead", lambda: not process.is_running),
            Fault.STOP: ("stopped", lambda: process.is_stopped),
            Fault.TERM: ("draining or ended", lambda: self._cluster.is_draining(name)),
            Fault.NETWORK: ("unplugged", lambda: is_unplugged(process.post.place)),
        }
        what, look = looks[self._cell.fault]
        await until(look, AssertionError(f"{name} is not {what}"), REACH_TIMEOUT_S)
        self.trial.evidence["after"] = f"{name} is {what}"

    async def _heal(self, hit_at: float) -> None:
        if self._cell.fault in (Fault.STOP, Fault.NETWORK):
            await asyncio.sleep(hit_at + STOP_S - time.monotonic())
            self._undo()

    def _undo(self) -> None:
        process = self._cluster.processes[self.trial.victim]
        if self._cell.fault is Fault.STOP:
            process.signal(signal.SIGCONT)
        elif self._cell.fault is Fault.NETWORK and is_unplugged(process.post.place):
            assert self._cluster.switch is not None
            self._cluster.switch.plug(process.post.place)

    # ---- afterwards

    async def _everybody_ends(self, hit_at: float) -> None:
        """A client whose router failed it asks the other one, as a client would."""
        async with asyncio.timeout(END_TIMEOUT_S):
            await asyncio.gather(*(self._end(client) for client in [*self._asked.clients, *self._asked.fillers]))

    async def _end(self, client: Client) -> None:
        await asyncio.wait({client.done})
        if client.error is not None and self._cell.victim is Victim.ROUTER and client.front.router == self.trial.victim:
            again = self._asked.again[client] = Client(client.ask, self._cluster.front("router-1"), client.over_http)
            await asyncio.wait({again.done})

    async def _become_whole(self, hit_at: float) -> None:
        cluster, name = self._cluster, self.trial.victim
        if self._cell.ends_process:
            late = AssertionError(f"{name} did not end within {EXIT_TIMEOUT_S:g} s")
            await until(lambda: not cluster.processes[name].is_running, late, EXIT_TIMEOUT_S)
            cluster.replace(name)
        await cluster.until_whole()
        self.trial.whole_s = round(time.monotonic() - hit_at, 3)
        await self._works_again()
        self.trial.leaked = await cluster.until_balanced(BALANCE_TIMEOUT_S)
        if not self.trial.leaked:
            self.trial.balanced_s = round(time.monotonic() - hit_at, 3)

    async def _works_again(self) -> None:
        """New requests by both routers are answered. What a fault has left in a connection shows now, not in the next trial."""
        self._asked.after = [self._ask(ROUTERS[number % 2], 0, AFTER_TOKENS) for number in range(AFTER)]
        async with asyncio.timeout(END_TIMEOUT_S):
            await asyncio.wait({client.done for client in self._asked.after})
        wanted = await self._expected.of([client.ask for client in self._asked.after])
        for client, answer in zip(self._asked.after, wanted, strict=True):
            if client.finish is None:
                self.trial.wrong.append(f"asked afterwards: {client.error}")
            self.trial.wrong += [f"asked afterwards: {wrong}" for wrong in await self._expected.differences(client, answer)]

    async def clean_up(self) -> None:
        self._cluster.let_go()
        clients = self._asked.everybody
        for client in clients:
            client.done.cancel()
        if clients:
            await asyncio.wait({client.done for client in clients})


async def _watch_clock(trial: Trial) -> None:
    while True:
        due = time.monotonic() + LOOK_PERIOD_S
        await asyncio.sleep(LOOK_PERIOD_S)
        trial.late_s = round(max(trial.late_s, time.monotonic() - due), 3)
