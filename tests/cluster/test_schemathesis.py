"""schemathesis against our own OpenAPI description on a running cluster: nothing breaks, and every reply is as it says.

`make schemathesis` sends some thousand requests; SERVAL_SCHEMATHESIS_CASES says how many at least.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_harness import ClusterSpec, RunningCluster
from cluster_shared import Clusters

CASES = int(os.environ.get("SERVAL_SCHEMATHESIS_CASES", "100"))
TIMEOUT_S = 300 if CASES < 1000 else 3000
SEED = 20
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
GENERATING = {"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses"}
PHASES = "examples,fuzzing" if CASES < 1000 else "examples,coverage,fuzzing"
"""The coverage phase alone, each field at each of its edges, is some 3,000 requests."""
CONTEXT = 64
"""Tokens: a generated request that asks for no limit gets a short answer."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture
def cluster(clusters: Clusters, tiny_spec: ClusterSpec) -> RunningCluster:
    return clusters.get(tiny_spec.with_settings(router__max_model_len=CONTEXT))


async def test_every_reply_is_as_described(cluster: RunningCluster, tmp_path: Path) -> None:
    reports = []
    while sum(report["test_cases"]["generated"] for report in reports) < CASES:
        reports.append(_run(cluster, tmp_path, SEED + len(reports)))
        assert reports[-1]["test_cases"]["generated"] > 0
        assert cluster.is_running
    operations = {name for report in reports for name in report["valid_rates"]}
    print(f"\n{sum(report['test_cases']['generated'] for report in reports)} cases, {len(operations)} operations")
    assert operations >= {*GENERATING, "POST /tokenize", "POST /detokenize", "GET /v1/models"}
    refused = {name for name in operations if not _accepted(reports, name)}
    assert refused <= {"GET /v1/models/{name}"}, "no request to these was ever accepted"  # no generated name is the model's
    assert "internal" not in await cluster.outcomes()
    await cluster.assert_idle()


def _run(cluster: RunningCluster, folder: Path, seed: int) -> dict[str, Any]:
    """One run's report. Asserts that nothing was found."""
    report = folder / f"{seed}.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{cluster.url}/openapi.json", "--seed", str(seed)]
    command += ["--phases", PHASES, "--max-examples", str(CASES // (5 if CASES < 1000 else 12))]
    command += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--suppress-health-check", "all"]
    command += ["--generation-database", "none", "--request-timeout", "60", "--no-color", "--workers", "2"]
    command += ["--report", "json", "--report-json-path", str(report)]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, (
        f"schemathesis, seed {seed}, ended with {ended.returncode}\n{ended.stdout[-12000:]}{ended.stderr[-2000:]}"
    )
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def _accepted(reports: list[dict[str, Any]], operation: str) -> bool:
    """Whether some request to it was answered with a success."""
    rates = [report["valid_rates"].get(operation, {}) for report in reports]
    return any(phase["accepted"] for rate in rates for phase in rate.values())
