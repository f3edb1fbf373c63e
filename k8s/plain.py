"""The plain flavour: a Deployment per role. Workers find routers by DNS, so nothing else needs to be installed, unless a worker is
more than one pod."""

from typing import Any

from k8s.container import grace_s, pool_of
from k8s.deployment import Deployment
from k8s.group import leader_worker_set
from k8s.objects import ROLES, Manifest, manifest, selector
from k8s.pod import template
from serving.roles import Role


def workloads(deployment: Deployment) -> list[Manifest]:
    return [_workload(deployment, role) for role in ROLES]


def _workload(deployment: Deployment, role: Role) -> Manifest:
    if deployment.hosts_of(role) > 1:
        return leader_worker_set(deployment, role, _rolling(role))
    pool = pool_of(deployment, role)
    spec = {
        "replicas": pool.replicas,
        "revisionHistoryLimit": 5,
        # Progress is a pod that became ready, and each may take the whole time, after the one before it has ended.
        "progressDeadlineSeconds": pool.start_timeout_s + grace_s(deployment, role) + 60,
        "selector": {"matchLabels": selector(deployment, role)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": _rolling(role)},
        "template": template(deployment, role),
    }
    return manifest(deployment, "apps/v1", "Deployment", role, role, spec=spec)


def _rolling(role: Role) -> dict[str, Any]:
    """Prefill makes room first: it holds nothing between requests, and may have the last GPU. Decode and routers hold streams:
    their successors come first."""
    return {"maxSurge": 0, "maxUnavailable": 1} if role == "prefill" else {"maxSurge": 1, "maxUnavailable": 0}
