"""A drain that is interrupted, too slow or asked for twice; pods that ended and are listed; who is asked before all is gone."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.objects import Manifest
from tests.apiserver.controller import POD
from tests.integration.k8s_commands_support import CONFIG, Cluster, cluster_for_tests, need_server, sentence

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")

FOR_EVER = 1_000_000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three decode workers that serve."""
    with cluster_for_tests(tmp_path) as made:
        need_server(made)
        done = made.serval("apply", *CONFIG, "--set", "kubernetes.decode.replicas=3", "--timeout", "60")
        assert done.status == 0, done.err
        yield made


def decode_pods(cluster: Cluster) -> list[Manifest]:
    return [one for one in cluster.pods() if "-decode-" in one["metadata"]["name"]]


def size(cluster: Cluster) -> int:
    return int(cluster.own()["Deployment/serval-decode"]["spec"]["replicas"])


def test_a_drain_that_was_too_slow_takes_no_second_worker_when_it_is_asked_for_again(cluster: Cluster) -> None:
    _, controller = need_server(cluster)
    controller.drain_ticks = FOR_EVER
    name = decode_pods(cluster)[1]["metadata"]["name"]
    slow = cluster.serval("drain", name, "--timeout", "1")
    assert slow.status == 3, slow.err
    assert f"{name} still drains after 1 s" in sentence(slow)
    assert size(cluster) == 2
    again = cluster.serval("drain", name, "--timeout", "1")
    assert again.status == 3, again.err
    assert f"{name} was asked to end before" in again.err
    assert size(cluster) == 2
    controller.drain_ticks = 1
    assert cluster.serval("drain", name, "--timeout", "30").status in (0, 1)  # 1: it went before it was looked for
    assert size(cluster) == 2


def test_interrupted_it_says_that_the_drain_goes_on(cluster: Cluster) -> None:
    _, controller = need_server(cluster)
    controller.drain_ticks = FOR_EVER
    name = decode_pods(cluster)[0]["metadata"]["name"]
    for words in ([name], ["decode", "--replicas", "1"]):
        process = cluster.start("drain", *words)
        assert process.stderr is not None
        for line in process.stderr:
            if "finishes what it has" in line or "pods of decode are left" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[1]
        assert process.returncode == 130, rest
        assert rest.splitlines()[-1] == "interrupted: what was asked to end goes on ending; the same command again waits for it"
    controller.drain_ticks = 1
    assert cluster.serval("drain", "decode", "--replicas", "1", "--timeout", "30").status == 0
    assert len(decode_pods(cluster)) == 1


def test_a_pod_that_its_node_threw_out_is_in_nobodys_way(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    thrown_out = decode_pods(cluster)[0]["metadata"]["name"]
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    with server.store.locked():
        server.store.change(POD, cluster.namespace, thrown_out, lambda one: one | {"status": status}, subresource="status")
    done = cluster.serval("apply", *CONFIG, "--set", "kubernetes.decode.replicas=3", "--timeout", "30")
    assert done.status == 0, done.err
    assert thrown_out in [one["metadata"]["name"] for one in decode_pods(cluster)]
    assert cluster.serval("status").status == 0
    refused = cluster.serval("drain", thrown_out)
    assert refused.status == 1
    assert "it serves nobody" in sentence(refused)
    done = cluster.serval("drain", "decode", "--replicas", "1", "--timeout", "30")
    assert done.status == 0, done.err


def test_before_the_last_worker_goes_somebody_is_asked(cluster: Cluster) -> None:
    name = next(one["metadata"]["name"] for one in cluster.pods() if "-prefill-" in one["metadata"]["name"])
    done = cluster.serval("drain", name, answer="n\n")
    assert done.status == 130
    assert "Drain the last worker of prefill? Nothing is served then." in done.err
    for words in (["drain", name], ["drain", "prefill"], ["delete"]):
        unasked = cluster.serval(*words, answer="")
        assert unasked.status == 1
        assert sentence(unasked) == "nobody is there to answer: --yes does"
    assert cluster.own()["Deployment/serval-prefill"]["spec"]["replicas"] == 1
    assert cluster.serval("drain", name, "--yes", "--timeout", "30").status == 0


def test_how_many_stay_is_not_said_of_one_pod(cluster: Cluster) -> None:
    name = decode_pods(cluster)[0]["metadata"]["name"]
    done = cluster.serval("drain", name, "--replicas", "2")
    assert done.status == 1
    assert "--replicas is for a pool" in sentence(done)
    assert size(cluster) == 3
