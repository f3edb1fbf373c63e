"""What `serval up` prints once the cluster serves."""

import json
import shlex
from collections.abc import Mapping

from serving.config import ServalConfig
from serving.status import Ready

QUESTION = "What is the capital of France?"


def announcement(config: ServalConfig, ready: Mapping[str, Ready], seconds: float) -> str:
    """The two addresses, every /metrics, and one line to try. `ready` is by process name and has the router's."""
    router = ready["router"]
    workers = {name: addresses for name, addresses in ready.items() if name != "router"}
    metrics = "  ".join(f"http://{one.metrics}/metrics ({name})" for name, one in workers.items())
    counts = f"{_count(config.cluster.prefill, 'prefill')}, {_count(config.cluster.decode, 'decode')}"
    return "\n".join(
        [
            f"Serval serves {config.router.model}: {counts}, ready in {seconds:.1f} s",
            f"  HTTP     http://{router.http}/v1",
            f"  gRPC     {router.grpc}",
            f"  metrics  http://{router.metrics}/metrics (router)  {metrics}",
            f"  try      {curl_line(f'http://{router.http}', config.router.model)}",
            "  stop     Ctrl-C (finishes the open requests first)",
        ]
    )


def curl_line(url: str, model: str) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    body = json.dumps({"model": model, "messages": messages, "temperature": 0, "stream": True})
    return f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _count(number: int, role: str) -> str:
    return f"{number} {role} worker{'' if number == 1 else 's'}"
