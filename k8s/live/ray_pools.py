"""What a RayService says of its pools, to Serve and to KubeRay: how large they are, and how to make one smaller."""

from collections.abc import Iterator
from typing import Any

import yaml

from k8s.live.errors import Refused
from k8s.objects import Manifest, dump
from serving.ray_app import DEPLOYMENTS

SCALING = "autoscaling_config"
"""Of a deployment whose number of replicas Serve chooses within limits."""


def at_least(service: Manifest) -> dict[str, int]:
    """Workers by role: those that there must be for the cluster to be whole."""
    return {
        role: one[SCALING]["min_replicas"] if SCALING in one else one["num_replicas"] for role, one in _deployments(service)
    }


def at_most(service: Manifest) -> dict[str, int]:
    """Workers by role: those that there may be."""
    return {
        role: one[SCALING]["max_replicas"] if SCALING in one else one["num_replicas"] for role, one in _deployments(service)
    }


def hosts_of(service: Manifest) -> dict[str, int]:
    """Pods of one worker, by role."""
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return {group["groupName"]: group.get("numOfHosts", 1) for group in groups}


def resized(service: Manifest, role: str, replicas: int) -> dict[str, Any]:
    """The spec's part that makes the pool `replicas` large, or where Serve scales it that large at most. Raises Refused for none
    of a pool that Serve scales."""
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    one = next(one for one in content["applications"][0]["deployments"] if _role_of(one) == role)
    scaling = one.get(SCALING)
    if scaling is None:
        one["num_replicas"] = replicas
    elif replicas < 1:
        raise Refused(f"{role} scales with its load, and Ray Serve keeps at least one: apply without `scaling`, then drain")
    else:
        limits = {name: min(scaling[name], replicas) for name in ("min_replicas", "max_replicas", "initial_replicas")}
        one[SCALING] = scaling | limits
    # Serve ends replicas; pods without one go when the autoscaler may have fewer. Without it KubeRay ends any pod of the group,
    # which drains by its preStop. Neither makes KubeRay build a second cluster.
    cluster = service["spec"]["rayClusterConfig"]
    is_scaled = bool(cluster.get("enableInTreeAutoscaling"))

    def smaller(group: Manifest) -> dict[str, int]:
        return {"minReplicas": min(group["minReplicas"], replicas)} | ({} if is_scaled else {"replicas": replicas})

    groups = [group | (smaller(group) if group["groupName"] == role else {}) for group in cluster["workerGroupSpecs"]]
    return {"serveConfigV2": dump(content), "rayClusterConfig": {"workerGroupSpecs": groups}}


def _deployments(service: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Serve's, by role."""
    content = yaml.safe_load(service["spec"]["serveConfigV2"])
    for one in content["applications"][0]["deployments"]:
        yield _role_of(one), one


def _role_of(deployment: dict[str, Any]) -> str:
    return next(role for role, name in DEPLOYMENTS.items() if name == deployment["name"])
