"""A worker on several machines under Ray Serve: its replica leads, an actor on each other machine holds the rest of its processes.

Serve places the replica and them as one: a placement group with a bundle for each machine, of which the replica has the first. They
end together, too: the actors are the replica's own, and a process that loses its leader ends; a leader that loses one of
them is sick, and Serve makes a new replica, in a new group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.util
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serving.config import ServalConfig
from serving.followers import Followers, ranks_of
from serving.roles import Role
from telemetry import logs


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

    def why_not(self) -> str | None:
        """None while all of them run."""
        return self._followers.why_not()


def spread_over(config: ServalConfig, role: Role, spread: Spread, address: str) -> ServalConfig:
    """`config` for the leader at `address`, whose processes are shared out evenly."""
    own = config.engine_of(role).tensor_parallel_size // spread.hosts - 1
    engine = config.engine.model_copy(update={"local_followers": own, "split_address": f"{address}:{spread.port}"})
    return config.model_copy(update={"engine": engine})


def start_followers(config: ServalConfig, role: Role, name: str) -> list[Any]:
    """On each machine of the placement group that this replica is in, but its own. They find the leader when it listens, and live
    as long as what is returned is kept."""
    group = ray.util.get_current_placement_group()
    assert group is not None, "Serve places a worker on several machines by a placement group"
    engine, actor = config.engine_of(role), ray.remote(Host)
    started = []
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
        started.append(own.remote(f"{name}-host-{host}", *words))
    return started
