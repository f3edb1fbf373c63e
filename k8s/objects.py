"""What every object has: names, labels, and the shape of plain YAML."""

from typing import Any

import yaml

from k8s.deployment import WORKERS, Deployment
from serving.roles import Role

Manifest = dict[str, Any]
"""One Kubernetes object, as YAML says it."""

FIELD_MANAGER = "serval"
PREFIX = "app.kubernetes.io"
ROLES: tuple[Role, ...] = ("router", *WORKERS)


def full_name(deployment: Deployment, part: str = "") -> str:
    name = deployment.kubernetes.name
    return f"{name}-{part}" if part else name


def selector(deployment: Deployment, component: str | None = None) -> dict[str, str]:
    """Labels that tell pods of this cluster, or of one role of it, from all others."""
    labels = {f"{PREFIX}/instance": deployment.kubernetes.name}
    return labels | ({f"{PREFIX}/component": component} if component else {"serval/cluster": deployment.kubernetes.name})


def labels(deployment: Deployment, component: str | None = None) -> dict[str, str]:
    """Of an object, or a pod."""
    return {
        f"{PREFIX}/name": "serval",
        f"{PREFIX}/instance": deployment.kubernetes.name,
        **({f"{PREFIX}/component": component} if component else {}),
        f"{PREFIX}/managed-by": FIELD_MANAGER,
        "serval/cluster": deployment.kubernetes.name,
    }


def manifest(
    deployment: Deployment, api: str, kind: str, part: str = "", component: str | None = None, **content: Any
) -> Manifest:
    """An object in the cluster's namespace, with `content` beside its metadata."""
    metadata = {
        "name": full_name(deployment, part),
        "namespace": deployment.kubernetes.namespace,
        "labels": labels(deployment, component),
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}


def host_of(deployment: Deployment, service: str) -> str:
    """A Service's name for DNS, from any namespace. Without the cluster's own suffix, which resolvers add."""
    return f"{full_name(deployment, service)}.{deployment.kubernetes.namespace}.svc"


def to_yaml(objects: list[Manifest]) -> str:
    """One YAML text, an object after the other."""
    return "---\n".join(dump(one) for one in objects)


def dump(content: Any) -> str:
    """YAML for people: in the order in which it was written, texts of several lines as such."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stay readable, lists are indented, and nothing is said by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
