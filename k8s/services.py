"""Names for what others dial, and how many pods may be taken away at a time."""

from typing import Any

from k8s.container import port_numbers
from k8s.deployment import Deployment
from k8s.objects import ROLES, Manifest, manifest, selector


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
    """One pod of a role at a time. A pod that is not ready never stands in the way of emptying its node."""
    return [
        manifest(
            deployment,
            "policy/v1",
            "PodDisruptionBudget",
            role,
            role,
            spec={
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector(deployment, role)},
            },
        )
        for role in ROLES
    ]


def _port(deployment: Deployment, name: str, protocol: str) -> dict[str, Any]:
    """With TLS towards clients what runs inside is nobody's business."""
    is_private = deployment.config.cluster.tls if name == "link" else deployment.config.router.tls
    number = port_numbers(deployment, "router")[name]
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"} | (
        {"appProtocol": "https"} if is_private else {"appProtocol": protocol}
    )
