"""What the router tells operators, the launcher and Prometheus about its cluster."""

from typing import Any

from router.dispatch import Dispatcher
from router.workers import DECODE, PREFILL, Membership, Worker


class Status:
    """Read-only views. `http_address` is where this router's own /metrics is, behind TLS or not."""

    def __init__(
        self, members: Membership, dispatcher: Dispatcher, name: str, http_address: str, has_tls: bool = False
    ) -> None:
        self._members = members
        self._dispatcher = dispatcher
        self._name = name
        self._http_address = http_address
        self._has_tls = has_tls

    def why_not_ready(self) -> str | None:
        """None when new requests are taken and a prefill and a decode worker are live."""
        if self._dispatcher.is_draining:
            return "the router is shutting down"
        missing = [name for name, role in (("prefill", PREFILL), ("decode", DECODE)) if not self._serving(role)]
        return f"no live {' and no live '.join(missing)} worker" if missing else None

    def workers(self) -> list[dict[str, Any]]:
        return [_describe(worker) for worker in self._members.all]

    def scrape_targets(self) -> list[dict[str, Any]]:
        own = _target(self._http_address, "router", self._name)
        if self._has_tls:
            own["labels"]["__scheme__"] = "https"
        return [own] + [
            _target(worker.hello.metrics_address, worker.pool, worker.name)
            for worker in self._members.all
            if worker.hello.metrics_address
        ]

    def _serving(self, role: Any) -> bool:
        return any(not worker.is_draining for worker in self._members.pool(role))


def _target(address: str, role: str, name: str) -> dict[str, Any]:
    return {"targets": [address], "labels": {"role": role, "worker": name}}


def _describe(worker: Worker) -> dict[str, Any]:
    hello, load = worker.hello, worker.load
    return {
        "role": worker.pool,
        "name": worker.name,
        "incarnation": f"{worker.incarnation:x}",
        "pid": hello.peer.process.pid,
        "address": hello.peer.address,
        "metrics_address": hello.metrics_address,
        "model": hello.model,
        "layout_fingerprint": hello.layout_fingerprint,
        "max_model_len": hello.max_model_len,
        "is_draining": worker.is_draining,
        "in_flight": worker.in_flight,
        "load": {
            "running": load.running,
            "waiting": load.waiting,
            "kv_blocks_used": load.kv_blocks_used,
            "kv_blocks_total": load.kv_blocks_total or hello.kv_blocks,
            "steps": load.steps,
        },
    }
