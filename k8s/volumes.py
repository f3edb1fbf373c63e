"""What a pod finds in its file system beside the image, which it cannot write to."""

from typing import Any

from k8s.config import PoolConfig
from k8s.deployment import CONFIG_FOLDER, FRONT_TLS_FOLDER, KEYS_FOLDER, PEER_TLS_FOLDER, Deployment
from k8s.objects import full_name
from serving.roles import Role

READABLE_BY_GROUP = 0o440
"""The volume's group is the process's (fsGroup), and nobody else's."""


def volumes(deployment: Deployment, role: Role, pool: PoolConfig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": full_name(deployment, "config")}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shm}},
    ]
    if pool.hugepages_2mi:
        found.append({"name": "hugepages", "emptyDir": {"medium": "HugePages-2Mi"}})
    if volume := deployment.kubernetes.model_volume:
        claim = {"claimName": volume.claim, "readOnly": True}
        found.append({"name": "models", "persistentVolumeClaim": claim})
    for name, (_, secret) in _secrets(deployment, role).items():
        found.append({"name": name, "secret": {"secretName": secret, "defaultMode": READABLE_BY_GROUP}})
    return found


def mounts(deployment: Deployment, role: Role, pool: PoolConfig | None = None) -> list[dict[str, Any]]:
    pool = pool or getattr(deployment.kubernetes, role)
    found: list[dict[str, Any]] = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": "/var/cache/serval"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if pool.hugepages_2mi:
        found.append({"name": "hugepages", "mountPath": "/dev/hugepages"})
    if deployment.kubernetes.model_volume:
        found.append({"name": "models", "mountPath": str(deployment.config.model.parent), "readOnly": True})
    for name, (folder, _) in _secrets(deployment, role).items():
        found.append({"name": name, "mountPath": folder, "readOnly": True})
    return found


def _secrets(deployment: Deployment, role: Role) -> dict[str, tuple[str, str]]:
    """Volume → (where it is mounted, which Secret): those that this role uses, and no other's."""
    names = deployment.kubernetes.secrets
    found = {}
    if names.peer_tls:
        found["peer-tls"] = (PEER_TLS_FOLDER, f"{names.peer_tls}-{role}")
    if role == "router" and names.front_tls:
        found["front-tls"] = (FRONT_TLS_FOLDER, names.front_tls)
    if role == "router" and names.api_keys:
        found["api-keys"] = (KEYS_FOLDER, names.api_keys)
    return found
