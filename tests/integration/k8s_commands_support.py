"""`serval k8s` against an API server: the one of tests/apiserver, or with SERVAL_TEST_KUBECONFIG a cluster of yours.

On a cluster of yours each test has a namespace of its own, which it deletes; what needs faults on demand is skipped, and so is what
needs pods that run, unless SERVAL_TEST_IMAGE names an image that the cluster can pull.
"""

import contextlib
import io
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from k8s.live.api import Api, connect
from k8s.live.target import Target
from k8s.objects import Manifest
from serving.cli import main
from tests.apiserver.controller import Controller
from tests.apiserver.server import ApiServer

KUBECONFIG = os.environ.get("SERVAL_TEST_KUBECONFIG")
IMAGE = os.environ.get("SERVAL_TEST_IMAGE")
PLAIN = ("--overlay", "dev-cpu", "--flavour", "plain")
CONFIG = ("--create-namespace", *PLAIN)


@dataclass(frozen=True)
class Result:
    """Of a command: its exit status and what it printed."""

    status: int
    out: str
    err: str


@dataclass
class Cluster:
    """`server` and `controller` are None on a cluster of yours."""

    kubeconfig: Path
    namespace: str
    server: ApiServer | None = None
    controller: Controller | None = None

    def serval(self, command: str, *words: str, kubeconfig: Path | None = None, answer: str = "") -> Result:
        """Runs `serval k8s COMMAND`, within this process."""
        line = ["serval", "k8s", command, *words, "--kubeconfig", str(kubeconfig or self.kubeconfig), "-n", self.namespace]
        if IMAGE and command in ("apply", "diff"):
            line += ["--image", IMAGE]
        out, err, before = io.StringIO(), io.StringIO(), (sys.argv, sys.stdin)
        sys.argv, sys.stdin = line, io.StringIO(answer)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main()
        finally:
            sys.argv, sys.stdin = before
        return Result(status, out.getvalue(), err.getvalue())

    def start(self, *words: str) -> subprocess.Popen[str]:
        """The same in a process of its own, for signals."""
        line = [sys.executable, "-m", "serving.cli", "k8s", *words, "--kubeconfig", str(self.kubeconfig), "-n", self.namespace]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def target(self) -> Target:
        return Target(Api(connect(self.kubeconfig, None), self.namespace, "serval-deployer", 10.0), "serval")

    def own(self) -> dict[str, Manifest]:
        """What the cluster has of ours, by kind and name."""
        return {f"{one['kind']}/{one['metadata']['name']}": one for one in self.target().own()}

    def pods(self) -> list[Manifest]:
        return self.target().pods()

    def put(self, content: dict[str, Any], manager: str = "somebody", force: bool = False) -> None:
        """Server-side apply by somebody else."""
        from kubernetes import dynamic

        api = dynamic.DynamicClient(connect(self.kubeconfig, None))
        resource = api.resources.get(api_version=content["apiVersion"], kind=content["kind"])
        name = content["metadata"]["name"]
        api.server_side_apply(resource, content, name, self.namespace, force_conflicts=force, field_manager=manager)


@contextlib.contextmanager
def cluster_for_tests(folder: Path) -> Iterator[Cluster]:
    if KUBECONFIG:
        yield from _yours(Path(KUBECONFIG))
        return
    with ApiServer() as server, Controller(server.store) as controller:
        made = Cluster(server.kubeconfig(folder / "kubeconfig.yaml"), "serval-test", server, controller)
        yield made


def _yours(kubeconfig: Path) -> Iterator[Cluster]:
    from kubernetes import client

    made = Cluster(kubeconfig, f"serval-test-{uuid.uuid4().hex[:8]}")
    yield made
    core = client.CoreV1Api(connect(kubeconfig, None))
    with contextlib.suppress(client.ApiException):
        core.delete_namespace(made.namespace)


def need_server(cluster: Cluster) -> tuple[ApiServer, Controller]:
    if cluster.server is None or cluster.controller is None:
        pytest.skip("needs the tests' own API server: faults and fates on demand")
    return cluster.server, cluster.controller


def need_pods(cluster: Cluster) -> None:
    if cluster.server is None and not IMAGE:
        pytest.skip("pods must run: SERVAL_TEST_IMAGE names no image that the cluster can pull")


def sentence(result: Result) -> str:
    """The error: one line."""
    lines = [line for line in result.err.splitlines() if line.startswith("serval: error: ")]
    assert len(lines) == 1, result.err
    return lines[0].removeprefix("serval: error: ")


def completes(cluster: Cluster) -> None:
    done = cluster.serval("apply", *CONFIG, "--timeout", "60")
    assert done.status == 0, done.err
    assert cluster.serval("diff", *PLAIN).status == 0
