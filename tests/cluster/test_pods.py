"""The containers of the plain flavour, each as a process at an address of its own, with the commands, environment and probes that
the manifests say: what a kubelet would do with them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine.tiny import write_tiny_llama
from k8s.deployment import CONFIG_FILE, CONFIG_FOLDER, load
from k8s.objects import ROLES
from k8s.render import objects
from tests.unit.k8s.k8s_support import of_kind, pods

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

START_S = 120.0
ADDRESSES = {"router": "127.0.0.1", "prefill": "127.0.0.2", "decode": "127.0.0.3"}
"""localhost's is the router's: that is the name behind which workers look for it."""

PORTS = {"router.http_port": 18000, "router.grpc_port": 18001, "router.link_port": 18002, "cluster.worker_port": 18010}
KV_PORTS = (21000, 21999)


class Pod:
    """One container."""

    def __init__(self, role: str, template: dict[str, Any], config: Path, log: Path) -> None:
        self.spec = template["spec"]
        self.container = self.spec["containers"][0]
        self.address = ADDRESSES[role]
        known = {"$(POD_NAME)": f"serval-{role}-x2z", "$(POD_IP)": self.address, CONFIG_FOLDER: str(config)}
        known |= {"serval-routers.serval.svc": "localhost"}
        words = self.container["args"]
        for name, value in known.items():
            words = [word.replace(name, value) for word in words]
        environment = {one["name"]: one["value"] for one in self.container["env"] if "value" in one}
        own = {"PATH": os.environ["PATH"], "SERVAL_CACHE": str(config / "cache"), "PYTHONPATH": str(Path.cwd())}
        self.log = log
        with log.open("w") as output:
            command = [sys.executable, *self.container["command"][1:], *words]
            self.process = subprocess.Popen(command, env=environment | own, stdout=output, stderr=subprocess.STDOUT)

    def ask(self, probe: str) -> int:
        """The status that a kubelet would see; 0 while nothing listens."""
        get = self.container[probe]["httpGet"]
        port = next(one["containerPort"] for one in self.container["ports"] if one["name"] == get["port"])
        try:
            url = f"{get['scheme'].lower()}://{self.address}:{port}{get['path']}"
            return httpx.get(url, timeout=self.container[probe]["timeoutSeconds"], trust_env=False).status_code
        except httpx.TransportError:
            return 0

    def until(self, probe: str, status: int) -> None:
        deadline = time.monotonic() + START_S
        while self.ask(probe) != status:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{probe} never said {status}: {self.log.read_text()}"
            time.sleep(0.1)

    def listening(self) -> set[int]:
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}

    def end(self) -> int:
        """SIGTERM; the exit status, within the grace that Kubernetes is told."""
        self.process.terminate()
        return self.process.wait(self.spec["terminationGracePeriodSeconds"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pod]]:
    folder = tmp_path_factory.mktemp("pods")
    settings = {"model": str(write_tiny_llama(folder / "tiny")), "engine.dtype": "float32", "engine.kv_memory_bytes": "4MiB"}
    settings |= {"cluster.metrics_port": 19100, "kubernetes.network.kv_ports": list(KV_PORTS)}
    # Loopback's name is refused for pods, and is the only device that these have: UCX takes a list.
    settings |= {"transfer.net_device": "lo,eth0", "transfer.transports": "tcp", "decode.local_prefill_max_tokens": 0}
    found = objects(load(None, "dev-cpu", {"kubernetes.flavour": "plain", **PORTS, **settings}))
    (folder / CONFIG_FILE).write_text(of_kind(found, "ConfigMap")["serval-config"]["data"][CONFIG_FILE])
    templates = pods(found)
    started = {role: Pod(role, templates[role], folder, folder / f"{role}.log") for role in ROLES}
    yield started
    for pod in started.values():
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait(10)


def answer() -> httpx.Response:
    body = {"model": "tiny", "prompt": "hello " * 40, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    url = f"http://{ADDRESSES['router']}:{PORTS['router.http_port']}/v1/completions"
    return httpx.post(url, json=body, timeout=60, trust_env=False)


def test_every_probe_turns_well_and_both_pools_answer(cluster: dict[str, Pod]) -> None:
    for pod in cluster.values():
        pod.until("startupProbe", 200)
    for pod in cluster.values():
        pod.until("readinessProbe", 200)
        assert pod.ask("livenessProbe") == 200
    response = answer()
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 16
    metrics = httpx.get(f"http://{ADDRESSES['decode']}:19102/metrics", trust_env=False).text
    landed = [line for line in metrics.splitlines() if line.startswith("serval_kv_transfer_bytes_total")]
    assert float(landed[0].split()[-1]) > 0
    assert 'worker="serval-decode-x2z"' in landed[0]


def test_nothing_listens_that_no_policy_names(cluster: dict[str, Pod]) -> None:
    for role, pod in cluster.items():
        named = {port["containerPort"] for port in pod.container["ports"]}
        others = pod.listening() - named
        assert named <= pod.listening()
        assert all(KV_PORTS[0] <= port <= KV_PORTS[1] for port in others), (role, others)
        assert bool(others) == (role != "router")


def test_a_worker_without_its_router_lives_and_is_not_ready_and_all_end_in_time(cluster: dict[str, Pod]) -> None:
    assert cluster["router"].end() == 0
    for role in ("prefill", "decode"):
        cluster[role].until("readinessProbe", 503)
        assert cluster[role].ask("livenessProbe") == 200
        assert cluster[role].end() == 0
