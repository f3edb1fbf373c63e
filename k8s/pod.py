"""The pod of one role: where it may run and as whom, around its container."""

import hashlib
from typing import Any

from k8s.container import container, grace_s, pool_of
from k8s.deployment import Deployment
from k8s.objects import PREFIX, full_name, labels, selector
from k8s.volumes import volumes
from serving.roles import Role

USER = 10001
"""The image's user (Dockerfile); the volumes' group too."""

HOST = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"


def template(deployment: Deployment, role: Role) -> dict[str, Any]:
    """A pod template whose container runs the role's process."""
    return {"metadata": metadata(deployment, role), "spec": spec(deployment, role, container(deployment, role))}


def metadata(deployment: Deployment, role: Role) -> dict[str, Any]:
    """A changed configuration changes the checksum, and so rolls the pods."""
    digest = hashlib.sha256(deployment.pod_yaml().encode()).hexdigest()[:16]
    return {"labels": labels(deployment, role), "annotations": {"serval/config-checksum": digest}}


def spec(deployment: Deployment, role: Role, main: dict[str, Any]) -> dict[str, Any]:
    """The pod around `main`."""
    pool, image = pool_of(deployment, role), deployment.kubernetes.image
    secrets = {"imagePullSecrets": [{"name": name} for name in image.pull_secrets]} if image.pull_secrets else {}
    return {
        "serviceAccountName": full_name(deployment, role),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **secrets,
        **({"priorityClassName": pool.priority_class} if pool.priority_class else {}),
        **({"nodeSelector": dict(pool.node_selector)} if pool.node_selector else {}),
        **({"tolerations": _tolerations(deployment, role)} if pool.tolerations else {}),
        **placement(deployment, role),
        "securityContext": as_nobody(),
        "terminationGracePeriodSeconds": grace_s(deployment, role),
        "containers": [main],
        "volumes": volumes(deployment, role, pool),
    }


def as_nobody() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def placement(deployment: Deployment, role: Role) -> dict[str, Any]:
    """Pods of one role on different machines where there are enough (never a condition: with too few nodes they would wait for
    ever); prefill and decode near each other, which RDMA makes a condition."""
    found: dict[str, Any] = {"topologySpreadConstraints": [_spread(deployment, role, HOST)]}
    if role == "router":
        found["topologySpreadConstraints"].append(_spread(deployment, role, ZONE))
        return found
    rdma = deployment.kubernetes.rdma
    near = {
        "labelSelector": {
            "matchLabels": selector(deployment),
            "matchExpressions": [{"key": f"{PREFIX}/component", "operator": "In", "values": ["prefill", "decode"]}],
        },
        "topologyKey": rdma.domain_label if rdma else ZONE,
    }
    when = "requiredDuringSchedulingIgnoredDuringExecution" if rdma else "preferredDuringSchedulingIgnoredDuringExecution"
    found["affinity"] = {"podAffinity": {when: [near if rdma else {"weight": 100, "podAffinityTerm": near}]}}
    return found


def _spread(deployment: Deployment, role: Role, key: str) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(deployment, role)},
    }


def _tolerations(deployment: Deployment, role: Role) -> list[dict[str, str]]:
    return [{"key": one.key, "operator": "Exists", "effect": one.effect} for one in pool_of(deployment, role).tolerations]
