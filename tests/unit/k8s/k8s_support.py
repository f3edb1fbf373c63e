"""Deployments of every overlay in both flavours, and what pods of them there will be."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from k8s.deployment import Deployment, load, overlays
from k8s.generate import FLAVOURS
from k8s.objects import Manifest
from k8s.render import objects

SHARED = Path(__file__).parents[4] / "shared"
OVERLAYS = (None, *overlays())
EVERY = list(itertools.product(OVERLAYS, FLAVOURS))
each_deployment = pytest.mark.parametrize(("overlay", "flavour"), EVERY, ids=[f"{one or 'base'}-{two}" for one, two in EVERY])
CLAIMS = "models,longcat-flash,serval-split"
"""PersistentVolumeClaims and a Secret that are the operator's own."""


def of_kind(found: list[Manifest], kind: str) -> dict[str, Manifest]:
    """By name."""
    return {one["metadata"]["name"]: one for one in found if one["kind"] == kind}


def deployment(overlay: str | None, flavour: str, **settings: Any) -> Deployment:
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    return load(None, overlay, {"kubernetes.flavour": flavour} | flags)


def as_deployments(found: list[Manifest]) -> list[Manifest]:
    """What Kubernetes will see of a RayService, pods of its head and of each group, and of a LeaderWorkerSet. As Deployments, which
    checkers know."""
    made = []
    for service in of_kind(found, "RayService").values():
        cluster = service["spec"]["rayClusterConfig"]
        groups = [("head", 1, cluster["headGroupSpec"])]
        groups += [(group["groupName"], group["replicas"], group) for group in cluster["workerGroupSpecs"]]
        for name, replicas, group in groups:
            labels = group["template"]["metadata"]["labels"]
            spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": group["template"]}
            metadata = {"name": name, "namespace": service["metadata"]["namespace"]}
            made.append({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    for group in of_kind(found, "LeaderWorkerSet").values():
        inner = group["spec"]["leaderWorkerTemplate"]
        for part, replicas in (("leader", 1), ("worker", inner["size"] - 1)):
            template = inner[f"{part}Template"]
            spec = {
                "replicas": replicas * group["spec"]["replicas"],
                "selector": {"matchLabels": template["metadata"]["labels"]},
            }
            metadata = {"name": f"{group['metadata']['name']}-{part}", "namespace": group["metadata"]["namespace"]}
            made.append(
                {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec | {"template": template}}
            )
    return made


def pods(found: list[Manifest]) -> dict[str, dict[str, Any]]:
    """Pod templates by component; of a worker on several hosts the leader's."""
    workloads = [*of_kind(found, "Deployment").values(), *as_deployments(found)]
    templates = [one["spec"]["template"] for one in workloads if not one["metadata"]["name"].endswith("-worker")]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def all_objects(overlay: str | None, flavour: str, **settings: Any) -> list[Manifest]:
    return objects(deployment(overlay, flavour, **settings))
