"""One Ray Serve replica: the same server as a plain process, in the replica's event loop, on ports of its own.

Serve places, checks, restarts and drains it. Serve carries no token: its handles cost a hundred times what our own streams do
(docs/decisions/0003-ray-owns-replicas.md).
"""

from collections.abc import Sequence
from typing import Any

import ray.util
from ray import serve

from serving import pod_drain
from serving.config import ServalConfig
from serving.ray_followers import Hosts, Spread, spread_over, start_followers
from serving.ray_scaling import STATS
from serving.roles import Member, Role, build
from telemetry import logs
from worker.spec import silent


class Replica:
    """A router, a prefill or a decode worker. `parts` are the applications that Serve must start along with this one: they are
    bound here because an application is what hangs together, and are not used otherwise. With `routers` this replica has its
    machine to itself, and with `spread` others besides."""

    async def __init__(  # type: ignore[misc]  # as Serve allows
        self, role: Role, config_json: str, routers: Sequence[str], spread: Spread, *parts: Any
    ) -> None:
        # A replica's rank is free again once it is gone, so its successor has the same name and a new incarnation.
        context = serve.get_replica_context()
        rank = context.rank.rank
        self._config = ServalConfig.model_validate_json(config_json)
        # In a pool that shrinks ranks move to other replicas while those go on, so there it is no name.
        moves = self._config.scaling is not None and role != "router"
        name = f"{role}-{context.replica_id.unique_id}" if moves else ""
        member = Member(role, rank, name)
        if routers:  # its ports are those of the first of its role, whatever its rank: nobody else is on this machine
            member = Member(role, 0, name or f"{role}-{rank}")
            self._config = on_own_machine(self._config, ray.util.get_node_ip_address(), member.name)
        logs.configure(member.name, self._config.cluster.log_level)
        followers = {}
        if spread.hosts > 1:
            self._config = spread_over(self._config, role, spread, self._config.cluster.host)
            followers = start_followers(self._config, role, member.name)
        self._hosts = Hosts(followers)
        self._server = build(member, self._config, routers or router_addresses(self._config), silent)
        await self._hosts.while_well(self._server.start())
        if routers:  # in a pod of its own, which Kubernetes may end
            self._door = await pod_drain.answer_at(pod_drain.DOOR, self.drain)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises, or does not answer in time: then the loop itself hangs."""
        self._hosts.check()
        await self._server.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's controller hands to the scaling policy."""
        desired = self._server.desired_workers
        return {} if desired is None else dict(zip(STATS.values(), map(float, desired), strict=True))

    async def drain(self) -> None:
        """Takes no new work and returns when the open work has ended, or after cluster.drain_timeout_s."""
        await self._server.drain(self._config.cluster.drain_timeout_s)

    async def __del__(self) -> None:
        """Called and awaited by Serve before it ends the replica, within graceful_shutdown_timeout_s."""
        if hasattr(self, "_server"):
            await self.drain()
            await self._server.stop(self._config.cluster.stop_timeout_s / 2)
            self._hosts.close()


def on_own_machine(config: ServalConfig, address: str, name: str) -> ServalConfig:
    """`config` for a process at `address`."""
    cluster = config.cluster.model_copy(update={"host": address})
    return config.model_copy(
        update={"cluster": cluster, "router": config.router.model_copy(update={"host": address, "name": name})}
    )


def router_addresses(config: ServalConfig) -> list[str]:
    """Where workers find the routers. There is one, and its port is settled before anything starts, so a router that was
    replaced is found where its predecessor was."""
    return [f"{config.router.host}:{config.router.link_port}"]
