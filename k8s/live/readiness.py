"""Whether a cluster serves, and what stands in the way: a pure look at the objects that there are."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.live.pods import PodState, Warnings, condition, pod_state, role_of, shortened
from k8s.live.ray_pools import at_least, hosts_of
from k8s.objects import ROLES, Manifest

HEALTHY = "RUNNING"
"""Of an application or a deployment, as Ray Serve says it."""


@dataclass(frozen=True)
class PoolState:
    """The pods of one role. `desired`: how many there shall be; `why`: what stands in the way, empty when nothing does.
    `is_hopeless`: Kubernetes has given up on it."""

    role: str
    desired: int
    ready: int
    pods: tuple[PodState, ...]
    why: tuple[str, ...]
    is_hopeless: bool = False

    @property
    def is_ready(self) -> bool:
        return not self.why and self.ready >= self.desired


@dataclass(frozen=True)
class ClusterState:
    """`why`: what concerns no single pool."""

    pools: tuple[PoolState, ...]
    why: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        return bool(self.pools) and not self.why and all(pool.is_ready for pool in self.pools)

    @property
    def is_hopeless(self) -> bool:
        return any(pool.is_hopeless for pool in self.pools)

    def problems(self) -> list[str]:
        """One sentence each."""
        found = list(self.why)
        for pool in self.pools:
            if not pool.is_ready:
                reasons = "; ".join(pool.why) or "waiting for its pods"
                found.append(f"{pool.role} {pool.ready}/{pool.desired} ready: {reasons}")
        return found


def warnings_of(events: Iterable[Manifest]) -> Warnings:
    """By the uid of what they are about, the latest last."""
    found: dict[str, list[Manifest]] = {}
    for event in sorted(events, key=lambda one: one.get("lastTimestamp") or one.get("eventTime") or ""):
        found.setdefault((event.get("involvedObject") or {}).get("uid", ""), []).append(event)
    return found


def cluster_state(
    workloads: Sequence[Manifest], pods: Sequence[Manifest], events: Iterable[Manifest], needed: Sequence[str] = ()
) -> ClusterState:
    """Of Deployments and LeaderWorkerSets, or a RayService, the pods that belong to the cluster, and the namespace's warnings.
    `needed`: roles without which it serves nobody, however ready the others are."""
    warnings = warnings_of(events)
    states: dict[str, list[PodState]] = {}
    for pod in sorted(pods, key=lambda one: str(one["metadata"]["name"])):
        if (pod.get("status") or {}).get("phase") != "Succeeded":
            states.setdefault(role_of(pod), []).append(pod_state(pod, warnings))
    pools: list[PoolState] = []
    why: list[str] = []
    for workload in workloads:
        if workload["metadata"].get("deletionTimestamp"):
            why.append(f"{workload['kind']}/{workload['metadata']['name']} is being deleted")
        if workload["kind"] == "Deployment":
            pools.append(_of_deployment(workload, states, warnings))
        elif workload["kind"] == "LeaderWorkerSet":
            pools.append(_of_leader_worker_set(workload, states))
        else:
            pools += _of_ray_groups(workload, states)
            why += _of_ray_service(workload, warnings)
    there = {pool.role for pool in pools}
    why += [f"there is no pool {role}: `serval k8s apply` makes it" for role in needed if there and role not in there]
    ranks = {role: rank for rank, role in enumerate(("head", *ROLES))}
    return ClusterState(tuple(sorted(pools, key=lambda pool: ranks.get(pool.role, len(ranks)))), tuple(why))


def _of_deployment(workload: Manifest, states: Mapping[str, list[PodState]], warnings: Warnings) -> PoolState:
    role, status = role_of(workload), workload.get("status") or {}
    desired = (workload.get("spec") or {}).get("replicas", 1)
    found = states.get(role, [])
    why = [] if _has_looked(workload) else ["Kubernetes has not looked at it yet"]
    failure, progress = condition(status, "ReplicaFailure"), condition(status, "Progressing")
    if failure.get("status") == "True":
        why.append(f"no pod can be made: {shortened(failure.get('message') or '')}")
    # Of what it says now: after a change the status of a rollout that failed before stands for a moment.
    is_hopeless = progress.get("reason") == "ProgressDeadlineExceeded" and _has_looked(workload)
    if is_hopeless:
        why.append("no pod became ready in the time that start_timeout_s gives")
    why += _troubles(found, desired)
    if (updated := status.get("updatedReplicas", 0)) < desired:
        why.append(f"{updated} of {desired} pods are of the new configuration")
    elif (left := status.get("replicas", 0) - updated) > 0:
        why.append(f"{left} pods of the old configuration drain")
    if not found and not why:
        why += [shortened(event.get("message") or "") for event in warnings.get(workload["metadata"].get("uid", ""), ())[-1:]]
    ready = min(status.get("readyReplicas", 0), sum(pod.is_ready for pod in found))
    return PoolState(role, desired, ready, tuple(found), tuple(why) if ready < desired or why else (), is_hopeless)


def _of_leader_worker_set(workload: Manifest, states: Mapping[str, list[PodState]]) -> PoolState:
    """Pods, like every pool; it counts groups of them."""
    role, status = role_of(workload), workload.get("status") or {}
    desired, each = workload["spec"].get("replicas", 1), pods_of_a_worker(workload)
    found = states.get(role, [])
    why = [] if _has_looked(workload) else ["the LeaderWorkerSet operator has not looked at it yet: does it run?"]
    why += _troubles(found, desired * each)
    if (updated := status.get("updatedReplicas", 0)) < desired:
        why.append(f"{updated} of {desired} workers are of the new configuration")
    elif (left := status.get("replicas", 0) - desired) > 0:
        why.append(f"{left} workers too many drain")
    ready = min(status.get("readyReplicas", 0) * each, sum(pod.is_ready for pod in found))
    return PoolState(role, desired * each, ready, tuple(found), tuple(why))


def pods_of_a_worker(leader_worker_set: Manifest) -> int:
    return int(leader_worker_set["spec"]["leaderWorkerTemplate"].get("size", 1))


def _troubles(pods: Sequence[PodState], desired: int) -> list[str]:
    """A pod that failed is none while enough others are ready: it stays as an object, long after another took its place."""
    is_short = sum(pod.is_ready for pod in pods) < desired
    found = [pod for pod in pods if not pod.is_ready and not pod.is_draining]
    return [f"{pod.name}: {pod.why}" for pod in found if is_short or pod.phase != "Failed"]


def _of_ray_groups(workload: Manifest, states: Mapping[str, list[PodState]]) -> list[PoolState]:
    """Pods by role; the head is a pool of one. How many workers Serve runs is in its own configuration."""
    hosts = hosts_of(workload)
    numbers = {role: workers * hosts.get(role, 1) for role, workers in at_least(workload).items()}
    pools = []
    for role in ("head", *ROLES):
        found = states.get(role, [])
        ready, desired = sum(pod.is_ready for pod in found), numbers.get(role, 1)
        why = _troubles(found, desired)
        if not found and desired:
            why.append("there is no pod yet")
        pools.append(PoolState(role, desired, ready, tuple(found), tuple(why)))
    return pools


def _of_ray_service(workload: Manifest, warnings: Warnings) -> list[str]:
    """What Serve says of its application; KubeRay's own word, where that is all there is."""
    status = workload.get("status") or {}
    if not _has_looked(workload):
        return ["KubeRay has not looked at the RayService yet: is its operator running?"]
    why = []
    active = status.get("activeServiceStatus") or {}
    pending = status.get("pendingServiceStatus") or {}
    if pending.get("rayClusterName"):
        why.append(f"RayCluster {pending['rayClusterName']} is being built and will take over")
    applications = active.get("applicationStatuses") or pending.get("applicationStatuses") or {}
    for name, application in applications.items():
        why += _of_application(name, application)
    if not applications:
        ready = condition(status, "Ready")
        reason = ready.get("message") or ready.get("reason") or "Ray runs no application yet"
        why.append(f"Ray Serve: {shortened(reason)}")
        why += [shortened(event.get("message") or "") for event in warnings.get(workload["metadata"].get("uid", ""), ())[-1:]]
    return why


def _of_application(name: str, application: Mapping[str, Any]) -> list[str]:
    if application.get("status") == HEALTHY:
        return []
    deployments = application.get("serveDeploymentStatuses") or {}
    sick = [
        f"{one} is {status.get('status')}" + (f" ({shortened(status['message'])})" if status.get("message") else "")
        for one, status in deployments.items()
        if status.get("status") not in ("HEALTHY", None)
    ]
    words = shortened(application.get("message") or "")
    return [
        f"Ray Serve's application {name} is {application.get('status')}: {', '.join(sick) or words or 'no reason was given'}"
    ]


def _has_looked(workload: Manifest) -> bool:
    """Whether the status is of what the object says now."""
    status = workload.get("status") or {}
    if workload["kind"] == "LeaderWorkerSet" and "observedGeneration" not in status:
        return bool(status.get("conditions"))  # older operators do not say of which generation it is
    return int(status.get("observedGeneration", 0)) >= int(workload["metadata"].get("generation", 1))


def to_json(state: ClusterState) -> str:
    """For programs: everything, and `is_ready` worked out."""
    pools = [
        {
            "role": pool.role,
            "desired": pool.desired,
            "ready": pool.ready,
            "is_ready": pool.is_ready,
            "why": list(pool.why),
            "pods": [vars(pod) for pod in pool.pods],
        }
        for pool in state.pools
    ]
    return json.dumps({"is_ready": state.is_ready, "why": list(state.why), "pools": pools}, indent=2)
