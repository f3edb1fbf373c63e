"""The kinds of object that Serval makes: in which order they come to be, and which of those that are there are ours."""

from collections.abc import Iterable

from k8s.objects import FIELD_MANAGER, PREFIX, Manifest

MADE = (
    ("v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("v1", "ConfigMap"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("apps/v1", "Deployment"),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
    ("ray.io/v1", "RayService"),
)
"""All kinds of every flavour, what others need first: a pod finds its account, its configuration and its policies."""

WORKLOADS = frozenset({"Deployment", "LeaderWorkerSet", "RayService"})
"""What has pods. They end first, while the names, rights and policies that they end with are still there."""

Key = tuple[str, str]
"""Kind and name: within one namespace no two of ours are the same."""

_RANK = {kind: rank for rank, (_, kind) in enumerate(MADE)}


def in_order(objects: Iterable[Manifest]) -> list[Manifest]:
    """As they are to be applied."""
    return sorted(objects, key=lambda one: _RANK[one["kind"]])


def key(one: Manifest) -> Key:
    return one["kind"], one["metadata"]["name"]


def label(one: Manifest) -> str:
    return "/".join(key(one))


def ours(name: str) -> str:
    """The label selector of everything that belongs to the cluster `name`."""
    return f"{PREFIX}/managed-by={FIELD_MANAGER},serval/cluster={name}"


def is_made_by_us(one: Manifest) -> bool:
    """Whether no operator made it on our objects' behalf: they hand labels on to what they make, and remove that themselves."""
    return not one["metadata"].get("ownerReferences")
