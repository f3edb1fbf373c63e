"""Workers of several pods, and pools that Serve scales, from `apply` to `drain`: counted and made smaller by the worker."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.k8s_commands_support import CONFIG, PLAIN, Cluster, cluster_for_tests, completes, need_server, sentence

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")

HOSTS = ("--set", "engine.tensor_parallel_size=4", "--set", "kubernetes.decode.hosts=2")
HOSTS += ("--set", "kubernetes.secrets.split_key=serval-split", "--set", "kubernetes.decode.replicas=2")
RAY = ("--create-namespace", "--overlay", "dev-cpu", "--flavour", "rayservice", "--timeout", "60")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with cluster_for_tests(tmp_path) as made:
        need_server(made)
        yield made


def decoders(cluster: Cluster) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"])


def pool(cluster: Cluster, role: str) -> tuple[int, int]:
    """Ready, and desired."""
    pools = {one["role"]: one for one in json.loads(cluster.serval("status", "--json").out)["pools"]}
    return pools[role]["ready"], pools[role]["desired"]


def test_groups_of_pods_from_apply_to_the_other_layout(cluster: Cluster) -> None:
    done = cluster.serval("apply", *CONFIG, *HOSTS, "--timeout", "60")
    assert done.status == 0, done.err
    assert cluster.serval("diff", *PLAIN, *HOSTS).status == 0
    assert "LeaderWorkerSet/serval-decode" in cluster.own()
    assert pool(cluster, "decode") == (4, 4)
    pods = decoders(cluster)

    refused = cluster.serval("drain", pods[0])
    assert refused.status == 1
    assert (
        sentence(refused)
        == f"the worker made last ends first: `serval k8s drain decode --replicas N`, or drain {pods[0]} --replace"
    )

    replaced = cluster.serval("drain", pods[0], "--replace", "--timeout", "60")
    assert replaced.status == 0, replaced.err
    assert cluster.serval("apply", *CONFIG, *HOSTS, "--timeout", "60").status == 0
    assert len(set(decoders(cluster)) & set(pods)) == 2  # its whole group went

    drained = cluster.serval("drain", "decode", "--replicas", "1", "--timeout", "60")
    assert drained.status == 0, drained.err
    assert len(decoders(cluster)) == 2

    completes(cluster)  # a worker is one pod again
    assert "LeaderWorkerSet/serval-decode" not in cluster.own()
    assert cluster.serval("delete", "--yes", "--timeout", "60").status == 0
    assert cluster.pods() == []


def test_without_its_operator_nothing_is_made(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    server.forget("leaderworkerset.x-k8s.io")
    done = cluster.serval("apply", *CONFIG, *HOSTS)
    assert done.status == 6
    assert "install LeaderWorkerSet, or leave out kubernetes.prefill.hosts and kubernetes.decode.hosts" in sentence(done)
    assert cluster.own() == {}


def test_a_pool_that_scales_is_drained_by_its_limits(cluster: Cluster) -> None:
    scaling = ("--set", "scaling={prefill: {max: 3}, decode: {min: 3, max: 5}}")
    done = cluster.serval("apply", *RAY, *scaling)
    assert done.status == 0, done.err
    assert pool(cluster, "decode") == (3, 3)

    drained = cluster.serval("drain", "decode", "--replicas", "2", "--timeout", "60")
    assert drained.status == 0, drained.err
    assert len(decoders(cluster)) == 2
    text = cluster.own()["RayService/serval"]["spec"]["serveConfigV2"]
    assert (text.count("max_replicas: 2"), text.count("max_replicas: 3")) == (1, 1)
    budget = cluster.own()["PodDisruptionBudget/serval-decode"]
    assert budget["spec"]["minAvailable"] == 1

    none = cluster.serval("drain", "decode", "--replicas", "0", "--yes")
    assert none.status == 1
    assert sentence(none).startswith("decode scales with its load, and Ray Serve keeps at least one: ")
    assert cluster.serval("apply", *RAY, *scaling).status == 0
    assert pool(cluster, "decode") == (3, 3)
