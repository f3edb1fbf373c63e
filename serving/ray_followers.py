"""A worker on several machines under Ray Serve: its replica leads, an actor on each other machine holds the rest of its processes.

Serve places the replica and them as one: a placement group with a bundle for each machine, of which the replica has the first. They
end together, too: the actors are the replica's own, and a process that loses its leader ends; a leader that loses one of
them is sick, and Serve makes a new replica, in a new group. What ends before the leader has seen it, only its actor can tell:
the replica asks each of them as long as it lives.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.util
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from protocol.errors import Unavailable
from serving.config import ServalConfig
from serving.followers import Followers, ranks_of
from serving.roles import Role
from telemetry import logs

Result = TypeVar("Result")

LOOK_PERIOD_S = 1.0
"""Between two questions to one machine."""


@dataclass(frozen=True)
class Spread:
    """`hosts`: machines of one worker. `port`: where its first waits for the others."""

    hosts: int = 1
    port: int = 0


class Host:
    """The actor: the processes of a worker on one machine that is not the worker's own."""

    def __init__(self, name: str, leader: str, ranks: Sequence[int], patience_s: float, log_level: str) -> None:
        logs.configure(name, log_level)
        self._followers = Followers(leader, ranks, patience_s)
        self._address = ray.util.get_node_ip_address()

    def why_not(self) -> str | None:
        """None while all of them run."""
        reason = self._followers.why_not()
        return None if reason is None else f"{reason} at {self._address}; the log of this actor says why"


class Hosts:
    """A worker's machines but its own, each asked after its processes once per LOOK_PERIOD_S, in the event loop that makes this.
    `by_name`: handles of Host."""

    def __init__(self, by_name: Mapping[str, Any]) -> None:
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watches = [asyncio.create_task(self._watch(name, host), name=name) for name, host in by_name.items()]

    def check(self) -> None:
        """Raises Unavailable, with the machine and the reason, once one of them has lost a process or is gone itself."""
        if self._lost.done():
            raise Unavailable(self._lost.result())

    async def while_well(self, work: Awaitable[Result]) -> Result:
        """What `work` comes to. Raises what `check` does as soon as it does, and breaks `work` off."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._lost), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():  # what it failed of by itself says more
                self.check()
            return await task
        finally:
            task.cancel()

    def close(self) -> None:
        """Asks no more."""
        for watch in self._watches:
            watch.cancel()

    async def _watch(self, name: str, host: Any) -> None:
        # No answer yet says nothing: an actor that still starts, or a network that comes back. Of one that is gone Ray knows.
        while not self._lost.done():
            reason = await _why_not(host)
            if reason is not None and not self._lost.done():
                self._lost.set_result(f"{name}: {reason}")
            await asyncio.sleep(LOOK_PERIOD_S)


async def _why_not(host: Any) -> str | None:
    try:
        reason: str | None = await host.why_not.remote()
    except ActorUnavailableError:
        return None
    except RayError as error:
        lines = str(error).strip().splitlines()  # ends in what was raised there, or how the process ended
        return f"its actor is gone: {lines[-1].strip() if lines else type(error).__name__}"
    return reason


def spread_over(config: ServalConfig, role: Role, spread: Spread, address: str) -> ServalConfig:
    """`config` for the leader at `address`, whose processes are shared out evenly."""
    own = config.engine_of(role).tensor_parallel_size // spread.hosts - 1
    engine = config.engine.model_copy(update={"local_followers": own, "split_address": f"{address}:{spread.port}"})
    return config.model_copy(update={"engine": engine})


def start_followers(config: ServalConfig, role: Role, name: str) -> dict[str, Any]:
    """On each machine of the placement group that this replica is in, but its own: handles of Host by name. They find the leader
    when it listens, and live as long as what is returned is kept."""
    group = ray.util.get_current_placement_group()
    assert group is not None, "Serve places a worker on several machines by a placement group"
    engine, actor = config.engine_of(role), ray.remote(Host)
    started = {}
    for host, bundle in enumerate(group.bundle_specs):
        if host == 0:
            continue
        own = actor.options(
            num_cpus=0,
            num_gpus=bundle.get("GPU", 0),
            resources={role: bundle[role]},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=host),
        )
        ranks = list(ranks_of(engine, host))
        words = (engine.split_address, ranks, engine.split_start_timeout_s, config.cluster.log_level)
        started[f"{name}-host-{host}"] = own.remote(f"{name}-host-{host}", *words)
    return started
