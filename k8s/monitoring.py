"""What the Prometheus operator is told: which pods have figures, and what to make of them; and Grafana's dashboards."""

import json
from typing import Any

from k8s.container import port_numbers
from k8s.dashboards import dashboards
from k8s.deployment import WORKERS, Deployment
from k8s.objects import PREFIX, Manifest, manifest, selector
from k8s.rules import groups
from serving.roles import Role

PERIOD = "15s"

GRAFANA = {"grafana_dashboard": "1"}
"""The label by which Grafana's sidecar finds ConfigMaps with dashboards."""


def monitors(deployment: Deployment) -> list[Manifest]:
    """By pod, which needs no Service and sees a router that is not ready; or by Services that are there for that alone."""
    router: dict[str, Any] = {"port": "http", "path": "/metrics", "interval": PERIOD, "scrapeTimeout": "10s"}
    if deployment.config.router.tls:
        # Prometheus dials a pod's address, which is in no certificate; the figures hold no secret.
        router |= {"scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}
    worker = {"port": "metrics", "path": "/metrics", "interval": PERIOD, "scrapeTimeout": "10s"}
    workers = {
        "matchLabels": selector(deployment),
        "matchExpressions": [{"key": f"{PREFIX}/component", "operator": "In", "values": list(WORKERS)}],
    }
    if deployment.kubernetes.monitors == "services":
        return [
            *_by_service(deployment, "router", router),
            *(one for role in WORKERS for one in _by_service(deployment, role, worker)),
        ]
    return [
        _monitor(deployment, "routers", {"matchLabels": selector(deployment, "router")}, router),
        _monitor(deployment, "workers", workers, worker),
    ]


def rules(deployment: Deployment) -> Manifest:
    content = {"groups": groups(deployment.kubernetes.slo)}
    return manifest(deployment, "monitoring.coreos.com/v1", "PrometheusRule", "rules", spec=content)


def boards(deployment: Deployment) -> list[Manifest]:
    """One ConfigMap per dashboard."""
    found = []
    for board in dashboards(deployment.kubernetes.slo):
        part = f"dashboard-{board.uid.removeprefix('serval-')}"
        text = json.dumps(board.to_json(), indent=1) + "\n"
        one = manifest(deployment, "v1", "ConfigMap", part, data={f"{board.uid}.json": text})
        one["metadata"]["labels"] |= GRAFANA
        found.append(one)
    return found


def _by_service(deployment: Deployment, role: Role, endpoint: dict[str, Any]) -> list[Manifest]:
    """A headless Service that lists all pods of the role, ready or not, and a monitor of that Service alone."""
    part, port = f"{role}-metrics", endpoint["port"]
    ports = [{"name": port, "port": port_numbers(deployment, role)[port], "targetPort": port, "protocol": "TCP"}]
    listed = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(deployment, role), "ports": ports}
    service = manifest(deployment, "v1", "Service", part, part, spec=listed)
    spec = {"selector": {"matchLabels": selector(deployment, part)}, "endpoints": [endpoint]}
    return [service, manifest(deployment, "monitoring.coreos.com/v1", "ServiceMonitor", part, spec=spec)]


def _monitor(deployment: Deployment, part: str, chosen: dict[str, Any], endpoint: dict[str, Any]) -> Manifest:
    spec = {"selector": chosen, "podMetricsEndpoints": [endpoint]}
    return manifest(deployment, "monitoring.coreos.com/v1", "PodMonitor", part, spec=spec)
