"""The kinds of object that the server knows, and the names under which it has them."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""One Kubernetes object, as JSON says it."""


@dataclass(frozen=True)
class Resource:
    """`group` is empty for the core ones. `merge_keys`: lists whose items are known by these fields, by the list's name."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True
    has_status: bool = False
    has_scale: bool = False
    schema: Any = None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


BUILT_IN = (
    Resource("", "v1", "namespaces", "Namespace", is_namespaced=False, has_status=True),
    Resource("", "v1", "pods", "Pod", has_status=True),
    Resource("", "v1", "events", "Event"),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "services", "Service", has_status=True),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("apps", "v1", "deployments", "Deployment", has_status=True, has_scale=True),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", has_status=True),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    Resource("coordination.k8s.io", "v1", "leases", "Lease"),
    Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", is_namespaced=False),
)

RAY = Resource("ray.io", "v1", "rayservices", "RayService", has_status=True)
LEADER_WORKER_SET = Resource(
    "leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet", has_status=True, has_scale=True
)
MONITORS = (
    Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    Resource("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor"),
    Resource("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
)
OPERATORS = (RAY, LEADER_WORKER_SET, *MONITORS)
"""What a cluster has when KubeRay, LeaderWorkerSet and the Prometheus operator are installed."""

MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
"""Lists of built-in kinds whose items have a name of their own; all others are one value."""

CONTAINER_PORT = ("containerPort", "protocol")
SERVICE_PORT = ("port", "protocol")


def merge_key(resource: Resource, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The fields by which items of the list at `path` are known. None: the list is one value, as in every custom resource."""
    if resource.group not in {one.group for one in BUILT_IN}:
        return None
    if path[-1] == "ports":
        return (
            SERVICE_PORT if resource.kind == "Service" else CONTAINER_PORT if resource.kind in ("Deployment", "Pod") else None
        )
    return MERGE_KEYS.get(path[-1])
