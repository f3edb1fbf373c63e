"""One cluster on Kubernetes: its `kubernetes` settings, and the configuration that its pods will read."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from k8s.config import KubernetesConfig
from protocol.errors import ConfigError
from serving.config import KUBERNETES, ServalConfig, compose, group_of, put_settings, read_settings
from serving.config_errors import one_line
from serving.roles import Role

CONFIG_FOLDER = "/etc/serval/config"
CONFIG_FILE = "serval.yaml"
FRONT_TLS_FOLDER = "/etc/serval/front-tls"
PEER_TLS_FOLDER = "/etc/serval/peer-tls"
KEYS_FOLDER = "/etc/serval/keys"

WORKER_PORT = 8010
"""Of a prefill worker; a decode worker's is the next one. Where the settings leave it to chance, policies could not name it."""

LOOPBACK = "lo"

WORKERS: tuple[Role, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class Deployment:
    """`config` is what a process in a pod has in effect, but for its own address. It says one worker of each role: a pod holds
    one, and how many pods there are is `kubernetes`' to say, so that scaling restarts nobody."""

    config: ServalConfig
    kubernetes: KubernetesConfig

    def hosts_of(self, role: Role) -> int:
        """Pods of one of the role's members."""
        pools = {"prefill": self.kubernetes.prefill.hosts, "decode": self.kubernetes.decode.hosts}
        return pools.get(role, 1)

    def processes_of(self, role: Role) -> int:
        """That share a model in one pod of the role."""
        return 1 if role == "router" else self.config.engine_of(role).tensor_parallel_size // self.hosts_of(role)

    def pod_yaml(self) -> str:
        """What pods mount: what was set, without defaults, which are the image's."""
        return yaml.safe_dump(self.config.model_dump(mode="json", exclude_unset=True), sort_keys=True)


def load(file: Path | None, overlay: str | None, flags: Mapping[str, Any]) -> Deployment:
    """The overlay's settings, `file`'s over them, and `flags` (dotted name → value) over both. Raises ConfigError."""
    settings = read_overlay("base")
    for more in (read_overlay(overlay) if overlay else {}, read_settings(file) if file else {}):
        lay_over(settings, more, ServalConfig)
    put_settings(settings, flags)
    try:
        kubernetes = KubernetesConfig.model_validate(group_of(settings, KUBERNETES))
    except ValidationError as error:
        raise ConfigError(f"{KUBERNETES}.{one_line(error, KubernetesConfig)}") from error
    del settings[KUBERNETES]
    put_settings(settings, _imposed(kubernetes, settings))
    config = compose(settings, model_is_here=False)
    deployment = Deployment(config, kubernetes)
    _check(config)
    _check_hosts(deployment)
    return deployment


def overlays() -> list[str]:
    """Names of what `--overlay` takes."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name != "base.yaml")


def read_overlay(name: str) -> dict[str, Any]:
    """The settings that come with Serval under this name. Raises ConfigError."""
    if name != "base" and name not in overlays():
        raise ConfigError(f"--overlay {name}: must be one of {', '.join(overlays())}")
    with resources.as_file(_folder() / f"{name}.yaml") as file:
        return read_settings(file)


def lay_over(settings: dict[str, Any], more: Mapping[str, Any], schema: type[BaseModel] | None) -> None:
    """Groups are merged, everything else is replaced. Nothing below a name (`decode:`, or null) says nothing, but where the group
    may be absent: `rdma: null` is none. `schema`: of `settings`, where there is one."""
    for name, value in more.items():
        kinds = _kinds(schema, name)
        if not isinstance(settings.get(name), dict):
            settings[name] = value
        elif isinstance(value, dict):
            lay_over(settings[name], value, next((kind for kind in kinds if issubclass(kind, BaseModel)), None))
        elif value is not None or NoneType in kinds:
            settings[name] = value


def _kinds(schema: type[BaseModel] | None, name: str) -> list[type]:
    """What the setting may be, of what matters here: groups, and None."""
    if schema is ServalConfig and name == KUBERNETES:
        return [KubernetesConfig]
    field = schema.model_fields.get(name) if schema is not None else None
    annotation = field.annotation if field is not None else None
    return [kind for kind in (get_args(annotation) or (annotation,)) if isinstance(kind, type)]


def _folder() -> Any:
    return resources.files("k8s") / "settings"


def _imposed(kubernetes: KubernetesConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that follow from the pods' layout, by dotted name."""
    secrets = kubernetes.secrets
    imposed: dict[str, Any] = {"cluster.prefill": 1, "cluster.decode": 1, "cluster.ray": False}
    if not group_of(settings, "cluster").get("worker_port"):
        imposed["cluster.worker_port"] = WORKER_PORT
    if secrets.front_tls:
        imposed["router.tls"] = {"certificate": f"{FRONT_TLS_FOLDER}/tls.crt", "key": f"{FRONT_TLS_FOLDER}/tls.key"}
    if secrets.api_keys:
        imposed["router.keys_file"] = f"{KEYS_FOLDER}/keys.yaml"
    if secrets.peer_tls:
        files = {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
        imposed["cluster.tls"] = {name: f"{PEER_TLS_FOLDER}/{file}" for name, file in files.items()}
    return imposed


def _check(config: ServalConfig) -> None:
    """Raises ConfigError for what serves one machine and no cluster."""
    taken: dict[int, str] = {}
    for name in ("http_port", "grpc_port", "link_port"):
        port = getattr(config.router, name)
        if port < 1024:
            raise ConfigError(f"router.{name}: must be 1024 or more on Kubernetes: a Service names it, and no process is root")
        if port in taken:
            raise ConfigError(f"router.{name}: must be another port than router.{taken[port]}, not {port} too")
        taken[port] = name
    if not config.cluster.metrics_port:
        raise ConfigError("cluster.metrics_port: must be a port on Kubernetes, not 0: Prometheus is told which")
    if config.transfer.net_device == LOOPBACK:
        raise ConfigError(
            f"transfer.net_device: {LOOPBACK} reaches no other pod; name the pods' device, such as eth0 or mlx5_0:1"
        )


def _check_hosts(deployment: Deployment) -> None:
    """Raises ConfigError for processes that cannot be laid out over the hosts that a worker has."""
    for role in WORKERS:
        hosts, engine = deployment.hosts_of(role), deployment.config.engine_of(role)
        if engine.local_followers is not None:
            raise ConfigError(
                f"engine.local_followers: must be left out on Kubernetes: it follows from kubernetes.{role}.hosts"
            )
        if engine.tensor_parallel_size % hosts:
            raise ConfigError(
                f"kubernetes.{role}.hosts: {hosts} do not share out the {engine.tensor_parallel_size} processes of a {role} "
                f"worker evenly (engine.tensor_parallel_size, or {role}_engine's)"
            )
        if hosts > 1 and deployment.kubernetes.secrets.split_key is None:
            raise ConfigError(
                f"kubernetes.secrets.split_key: must name a Secret: a {role} worker is {hosts} pods, which know each other by it"
            )
