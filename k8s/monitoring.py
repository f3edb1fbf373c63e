"""What the Prometheus operator is told: which pods have figures, and where."""

from typing import Any

from k8s.deployment import Deployment
from k8s.objects import PREFIX, WORKERS, Manifest, manifest, selector

PERIOD = "15s"


def monitors(deployment: Deployment) -> list[Manifest]:
    """By pod and not by Service: a worker has none, and a router that is not ready is the one to look at."""
    router: dict[str, Any] = {"port": "http", "path": "/metrics", "interval": PERIOD, "scrapeTimeout": "10s"}
    if deployment.config.router.tls:
        # Prometheus dials a pod's address, which is in no certificate; the figures hold no secret.
        router |= {"scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}
    worker = {"port": "metrics", "path": "/metrics", "interval": PERIOD, "scrapeTimeout": "10s"}
    workers = {
        "matchLabels": selector(deployment),
        "matchExpressions": [{"key": f"{PREFIX}/component", "operator": "In", "values": list(WORKERS)}],
    }
    return [
        _monitor(deployment, "routers", {"matchLabels": selector(deployment, "router")}, router),
        _monitor(deployment, "workers", workers, worker),
    ]


def _monitor(deployment: Deployment, part: str, chosen: dict[str, Any], endpoint: dict[str, Any]) -> Manifest:
    spec = {"selector": chosen, "podMetricsEndpoints": [endpoint]}
    return manifest(deployment, "monitoring.coreos.com/v1", "PodMonitor", part, spec=spec)
