"""The RayService flavour: Ray places, checks, restarts and scales the processes; each worker group's pods hold one each."""

import json
import math
from typing import Any

from k8s.config import PoolConfig
from k8s.container import (
    START_PERIOD_S,
    environment,
    gpus_of,
    pool_of,
    ports,
    probes,
    resources,
    routers_address,
    security,
    workers_at_least,
)
from k8s.deployment import CONFIG_FILE, CONFIG_FOLDER, WORKERS, Deployment
from k8s.objects import ROLES, Manifest, dump, full_name, labels, manifest
from k8s.pod import as_nobody, metadata, spec
from k8s.policies import HEAD, HEAD_PORTS
from k8s.volumes import mounts
from serving.ray_app import APPLICATION, DEPLOYMENTS, replica_count, replica_settings, scaling_policy
from serving.roles import Role

RAY_VERSION = "2.60.0"
AGENT_PORT = 52365
"""Of Ray's agent on every node, which knows whether the raylet lives."""

RAYLET_HEALTH = "/api/local_raylet_healthz"
GCS_HEALTH = "/api/gcs_healthz"
IMPORT_PATH = "serving.ray_cluster:application"


def workloads(deployment: Deployment) -> list[Manifest]:
    settings = deployment.kubernetes.ray
    cluster: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        # KubeRay makes the token that Ray's processes ask each other for.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": settings.autoscale,
    }
    if settings.autoscale:
        cluster["autoscalerOptions"] = _autoscaler()
    if settings.redis_address:
        password = {"valueFrom": {"secretKeyRef": {"name": settings.redis_secret, "key": "password"}}}
        secret = {"redisPassword": password} if settings.redis_secret else {}
        cluster["gcsFaultToleranceOptions"] = {"redisAddress": settings.redis_address, **secret}
    cluster["headGroupSpec"] = _head(deployment)
    cluster["workerGroupSpecs"] = [_group(deployment, role) for role in ROLES]
    content = {
        "serveConfigV2": dump(serve_config(deployment)),
        # What changes pods builds a second cluster and then switches: room for both is needed while it lasts.
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": _longest_stop_s(deployment),
        "rayClusterConfig": cluster,
    }
    return [manifest(deployment, "ray.io/v1", "RayService", "", spec=content)]


def serve_config(deployment: Deployment) -> dict[str, Any]:
    """Serve's config file. A change of it alone is applied in place, by restarting what it changes."""
    arguments: dict[str, Any] = {"config": f"{CONFIG_FOLDER}/{CONFIG_FILE}", "routers": routers_address(deployment)}
    if hosts := {role: deployment.hosts_of(role) for role in WORKERS if deployment.hosts_of(role) > 1}:
        arguments |= {"hosts": hosts, "split_port": deployment.kubernetes.network.split_port}
    application = {
        "name": APPLICATION,
        "import_path": IMPORT_PATH,
        "route_prefix": None,
        "args": arguments,
        **scaling_policy(deployment.config.scaling),
        "deployments": [_serve_deployment(deployment, role) for role in ROLES],
    }
    return {"proxy_location": "Disabled", "applications": [application]}


def _serve_deployment(deployment: Deployment, role: Role) -> dict[str, Any]:
    pool = pool_of(deployment, role)
    # One process per pod of its own group: that is what the resource with the role's name says.
    gpus, hosts = gpus_of(deployment, role), deployment.hosts_of(role)
    actor = {"num_cpus": 0, "num_gpus": gpus, "resources": {role: 1}}
    bundle = {role: 1} | ({"GPU": gpus} if gpus else {})
    group = {"placement_group_bundles": [bundle] * hosts, "placement_group_strategy": "STRICT_SPREAD"} if hosts > 1 else {}
    settings = replica_settings(deployment.config.cluster)
    count = replica_count(deployment.config.scaling, role, pool.replicas)
    return {"name": DEPLOYMENTS[role], **count, **settings, "ray_actor_options": actor, **group}


def _group(deployment: Deployment, role: Role) -> dict[str, Any]:
    pool = pool_of(deployment, role)
    main = {
        "name": "ray-worker",
        "image": deployment.kubernetes.image.name,
        "imagePullPolicy": deployment.kubernetes.image.pull_policy,
        "env": [*environment(deployment, role), *_ray_environment()],
        "ports": ports(deployment, role),
        "resources": resources(deployment, role),
        "securityContext": security(deployment, role),
        "volumeMounts": mounts(deployment, role),
        "lifecycle": {"preStop": {"exec": {"command": _drain(deployment, role)}}},
        **_raylet_probes(pool),
    }
    if role == "router":  # clients must not be sent to a pod whose replica is not there yet
        main["readinessProbe"] = probes(deployment, role)["readinessProbe"]
    return {
        "groupName": role,
        **_workers(deployment, role),
        "rayStartParams": {"resources": json.dumps(json.dumps({role: 1}))},
        "template": {"metadata": metadata(deployment, role), "spec": spec(deployment, role, main)},
    }


def _workers(deployment: Deployment, role: Role) -> dict[str, int]:
    """At first, at least and at most, one for each replica that the scaling policy may want; and the pods of each, which KubeRay
    makes and ends together."""
    pool, scaling, hosts = pool_of(deployment, role), deployment.config.scaling, deployment.hosts_of(role)
    together = {"numOfHosts": hosts} if hosts > 1 else {}
    least = workers_at_least(deployment, role)
    if scaling is None or role == "router":
        return {"replicas": pool.replicas, "minReplicas": least, "maxReplicas": pool.most, **together}
    limits = scaling.prefill if role == "prefill" else scaling.decode
    return {"replicas": limits.clamp(pool.replicas), "minReplicas": least, "maxReplicas": limits.max, **together}


def _drain(deployment: Deployment, role: Role) -> list[str]:
    """What a pod runs before it is ended: SIGTERM goes to Ray, which knows nothing of drains."""
    wait_s = deployment.kubernetes.deregister_s if role == "router" else 0
    return ["python", "-m", "serving.pod_drain", *([f"--wait-s={wait_s}"] if wait_s else [])]


def _head(deployment: Deployment) -> dict[str, Any]:
    """Ray's own processes. Without cores or a role's resource no replica is placed here."""
    settings = deployment.kubernetes.ray
    memory = settings.head_memory
    main = {
        "name": "ray-head",
        "image": deployment.kubernetes.image.name,
        "imagePullPolicy": deployment.kubernetes.image.pull_policy,
        "env": [*_ray_environment(), {"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in HEAD_PORTS.items()],
        "resources": {"requests": {"cpu": settings.head_cpu, "memory": memory}, "limits": {"memory": memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        "startupProbe": _get(AGENT_PORT, RAYLET_HEALTH, periodSeconds=START_PERIOD_S, failureThreshold=60),
        "livenessProbe": _get(AGENT_PORT, RAYLET_HEALTH, periodSeconds=10, failureThreshold=12),
        "readinessProbe": _get(HEAD_PORTS["dashboard"], GCS_HEALTH, periodSeconds=5, failureThreshold=3),
    }
    account: dict[str, Any] = {"serviceAccountName": full_name(deployment, HEAD)}
    if not settings.autoscale:  # the autoscaler beside the head asks Kubernetes for pods; KubeRay binds its rights
        account["automountServiceAccountToken"] = False
    return {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {
            "metadata": {"labels": labels(deployment, HEAD), "annotations": metadata(deployment, "router")["annotations"]},
            "spec": {
                **account,
                "enableServiceLinks": False,
                "securityContext": as_nobody(),
                "terminationGracePeriodSeconds": 60,
                "containers": [main],
                "volumes": [
                    {"name": "config", "configMap": {"name": full_name(deployment, "config")}},
                    {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
                    {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
                ],
            },
        },
    }


def _raylet_probes(pool: PoolConfig) -> dict[str, Any]:
    """A pod of Ray's is well when its raylet is: Serve looks after the replica in it, which may not be there at the moment."""
    tries = math.ceil(pool.start_timeout_s / START_PERIOD_S)
    return {
        "startupProbe": _get(AGENT_PORT, RAYLET_HEALTH, periodSeconds=START_PERIOD_S, failureThreshold=tries),
        "livenessProbe": _get(AGENT_PORT, RAYLET_HEALTH, periodSeconds=10, failureThreshold=12),
        "readinessProbe": _get(AGENT_PORT, RAYLET_HEALTH, periodSeconds=5, failureThreshold=3),
    }


def _get(port: int, path: str, **times: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5, **times}


def _ray_environment() -> list[dict[str, str]]:
    return [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]


def _autoscaler() -> dict[str, Any]:
    return {
        "idleTimeoutSeconds": 300,
        "upscalingMode": "Conservative",
        "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        },
    }


def _longest_stop_s(deployment: Deployment) -> int:
    """Seconds that the old cluster of an upgrade goes on, for the streams that it still holds."""
    cluster = deployment.config.cluster
    return math.ceil(cluster.drain_timeout_s + cluster.stop_timeout_s) + 30
