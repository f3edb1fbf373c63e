"""Names for what others dial, and how many pods may be taken away at a time."""

from typing import Any

from k8s.container import port_numbers, workers_at_least
from k8s.deployment import Deployment
from k8s.objects import ROLES, Manifest, manifest, selector
from serving.roles import Role


def services(deployment: Deployment) -> list[Manifest]:
    """Three, all of the routers.

    - the front: one address, for HTTP, and for gRPC through a proxy or mesh that balances calls (appProtocol says which);
    - `grpc`, headless: a gRPC client keeps one connection, so it must see every router to balance its calls by itself
      (`dns:///…`, round_robin);
    - `routers`, headless, for workers. With routers that are not ready: they become so when workers have joined.
    """
    front = [_port(deployment, "http", "http"), _port(deployment, "grpc", "kubernetes.io/h2c")]
    chosen = selector(deployment, "router")
    headless = {"clusterIP": "None", "selector": chosen}
    clients = {"ports": [_port(deployment, "grpc", "kubernetes.io/h2c")]}
    workers = {"publishNotReadyAddresses": True, "ports": [_port(deployment, "link", "kubernetes.io/h2c")]}
    return [
        manifest(deployment, "v1", "Service", "", "router", spec={"type": "ClusterIP", "selector": chosen, "ports": front}),
        manifest(deployment, "v1", "Service", "grpc", "router", spec=headless | clients),
        manifest(deployment, "v1", "Service", "routers", "router", spec=headless | workers),
    ]


def disruption_budgets(deployment: Deployment) -> list[Manifest]:
    """One pod of a role at a time, and so one worker: the others of its group are away with it. A pod that is not ready never
    stands in the way of emptying its node."""
    return [
        manifest(
            deployment,
            "policy/v1",
            "PodDisruptionBudget",
            role,
            role,
            spec={
                **_allowance(deployment, role),
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector(deployment, role)},
            },
        )
        for role in ROLES
    ]


def _allowance(deployment: Deployment, role: Role) -> dict[str, int]:
    """Kubernetes counts how many pods there should be where it knows what makes them (a scale subresource). It does not of a
    RayCluster: there a budget that says how many may be missing lets nobody go, so it says how many must be there."""
    if deployment.kubernetes.flavour == "plain":
        return {"maxUnavailable": 1}
    return {"minAvailable": workers_at_least(deployment, role) * deployment.hosts_of(role) - 1}


def _port(deployment: Deployment, name: str, protocol: str) -> dict[str, Any]:
    """With TLS towards clients what runs inside is nobody's business."""
    is_private = deployment.config.cluster.tls if name == "link" else deployment.config.router.tls
    number = port_numbers(deployment, "router")[name]
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"} | (
        {"appProtocol": "https"} if is_private else {"appProtocol": protocol}
    )
