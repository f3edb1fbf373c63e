"""What `serval up` prints once the cluster serves."""

import json
import shlex
from collections.abc import Mapping

from serving.config import ServalConfig
from serving.front import front_url
from serving.status import Ready

QUESTION = "What is the capital of France?"


def announcement(config: ServalConfig, ready: Mapping[str, Ready], seconds: float) -> str:
    """The two addresses, every /metrics, and one line to try. `ready` is by process name and has the router's."""
    router = ready["router"]
    workers = {name: addresses for name, addresses in ready.items() if name != "router"}
    url, grpc = front_url(config, str(router.http)), f"{router.grpc} (TLS)" if config.router.tls else router.grpc
    metrics = "  ".join(f"http://{one.metrics}/metrics ({name})" for name, one in workers.items())
    counts = f"{_count(config.cluster.prefill, 'prefill')}, {_count(config.cluster.decode, 'decode')}"
    return "\n".join(
        [
            f"Serval serves {config.router.model}: {counts}, ready in {seconds:.1f} s",
            f"  HTTP     {url}/v1",
            f"  gRPC     {grpc}",
            f"  metrics  {front_url(config, router.metrics)}/metrics (router)  {metrics}",
            f"  try      {curl_line(url, config.router.model, needs_key=config.router.keys_file is not None)}",
            "  stop     Ctrl-C (finishes the open requests first)",
        ]
    )


def curl_line(url: str, model: str, needs_key: bool = False) -> str:
    """The names of the environment are those that `serval chat` reads."""
    messages = [{"role": "user", "content": QUESTION}]
    body = json.dumps({"model": model, "messages": messages, "temperature": 0, "stream": True})
    trust = ' --cacert "$SERVAL_CA"' if url.startswith("https:") else ""
    key = ' -H "Authorization: Bearer $SERVAL_API_KEY"' if needs_key else ""
    return f"curl -N{trust} {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _count(number: int, role: str) -> str:
    return f"{number} {role} worker{'' if number == 1 else 's'}"
