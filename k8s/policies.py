"""Who may talk to whom. NetworkPolicies do not see RDMA: there the fabric's own partitions must do it (docs/security.md)."""

from typing import Any

from k8s.container import port_numbers
from k8s.deployment import Deployment
from k8s.objects import ROLES, Manifest, manifest, selector
from serving.roles import Role

DNS_PORT = 53
HEAD = "head"
HEAD_PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
"""Ray's own defaults; `serve` has no listener with Serve's proxies off, but KubeRay wants the port named."""

Rule = dict[str, Any]


def policies(deployment: Deployment) -> list[Manifest]:
    """One per role, that lists all it may hear and say. Ray's processes talk to each other on any port."""
    found = [_policy(deployment, role, *_rules(deployment, role)) for role in ROLES]
    if deployment.kubernetes.flavour == "rayservice":
        operator = [{"namespaceSelector": {"matchLabels": dict(deployment.kubernetes.ray.operator_namespaces)}}]
        asked = {"from": operator, "ports": _tcp(HEAD_PORTS["dashboard"], HEAD_PORTS["gcs"])}
        # The autoscaler beside the head asks the API server, whose address no label tells.
        found.append(_policy(deployment, HEAD, [asked], [_names(), {"ports": _tcp(443, 6443)}, *_redis(deployment)]))
        among = [{"podSelector": {"matchLabels": selector(deployment)}}]
        spec = {
            "podSelector": {"matchLabels": selector(deployment)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": among}],
            "egress": [{"to": among}],
        }
        found.append(manifest(deployment, "networking.k8s.io/v1", "NetworkPolicy", "ray", spec=spec))
    return found


def _rules(deployment: Deployment, role: Role) -> tuple[list[Rule], list[Rule]]:
    """What comes in, what goes out."""
    router = port_numbers(deployment, "router")
    prefill = _tcp(port_numbers(deployment, "prefill")["grpc"])
    kv = [_range(deployment)]
    out = [_names(), *_collector(deployment)]
    join = {"to": _pods(deployment, "router"), "ports": _tcp(router["link"])}
    match role:
        case "router":
            front = {"ports": _tcp(router["http"], router["grpc"])}
            workers = {"from": _pods(deployment, "prefill", "decode"), "ports": _tcp(router["link"])}
            return [_clients(deployment) | front, workers, _scrapes(deployment, router["http"])], out
        case "prefill":
            asked = {"from": _pods(deployment, "decode"), "ports": [*prefill, *kv]}
            written = {"to": _pods(deployment, "decode"), "ports": kv}
            heard, said = _group(deployment, role)
            return [asked, *heard, _worker_scrapes(deployment, role)], [*out, join, written, *said]
        case "decode":
            written = {"from": _pods(deployment, "prefill"), "ports": kv}
            ask = {"to": _pods(deployment, "prefill"), "ports": [*prefill, *kv]}
            heard, said = _group(deployment, role)
            return [written, *heard, _worker_scrapes(deployment, role)], [*out, join, ask, *said]


def _group(deployment: Deployment, role: Role) -> tuple[list[Rule], list[Rule]]:
    """Of a worker on several hosts: its pods talk to each other on ports that torch and NCCL choose. No label that is known here
    tells its own from the pool's others; what those lack is the key."""
    if deployment.hosts_of(role) == 1:
        return [], []
    own = _pods(deployment, role)
    return [{"from": own}], [{"to": own}]


def _policy(deployment: Deployment, role: str, ingress: list[Rule], egress: list[Rule]) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": selector(deployment, role)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return manifest(deployment, "networking.k8s.io/v1", "NetworkPolicy", role, role, spec=spec)


def _pods(deployment: Deployment, *roles: Role) -> list[dict[str, Any]]:
    return [{"podSelector": {"matchLabels": selector(deployment, role)}} for role in roles]


def _clients(deployment: Deployment) -> Rule:
    namespaces = deployment.kubernetes.network.client_namespaces
    return {} if namespaces is None else {"from": [{"namespaceSelector": {"matchLabels": dict(namespaces)}}]}


def _scrapes(deployment: Deployment, port: int) -> Rule:
    namespaces = deployment.kubernetes.network.monitoring_namespaces
    return {"from": [{"namespaceSelector": {"matchLabels": dict(namespaces)}}], "ports": _tcp(port)}


def _worker_scrapes(deployment: Deployment, role: Role) -> Rule:
    return _scrapes(deployment, port_numbers(deployment, role)["metrics"])


def _collector(deployment: Deployment) -> list[Rule]:
    port = deployment.kubernetes.network.collector_port
    return [{"ports": _tcp(port)}] if port else []


def _redis(deployment: Deployment) -> list[Rule]:
    address = deployment.kubernetes.ray.redis_address
    return [{"ports": _tcp(int(address.rpartition(":")[2]))}] if address else []


def _names() -> Rule:
    return {"ports": [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]}


def _tcp(*ports: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _range(deployment: Deployment) -> dict[str, Any]:
    first, last = deployment.kubernetes.network.kv_ports
    return {"protocol": "TCP", "port": first, "endPort": last}
