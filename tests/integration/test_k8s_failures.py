"""What goes wrong between `serval k8s` and the API server: a clear sentence and an exit status each, and a second run completes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.config import Flavour
from tests.apiserver.faults import Fault
from tests.apiserver.rights import token_of
from tests.integration.k8s_commands_support import CONFIG, PLAIN, Cluster, cluster_for_tests, completes, need_server, sentence

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")

DEPLOYMENT = "apps/v1", "Deployment", "serval-decode"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with cluster_for_tests(tmp_path) as made:
        yield made


def test_a_conflict_names_the_owner_and_the_field_and_changes_nothing(cluster: Cluster) -> None:
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    theirs = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "serval-decode"}, "spec": {"replicas": 4}}
    cluster.put(theirs, manager="an-autoscaler", force=True)
    done = cluster.serval("apply", *CONFIG, "--no-wait", "--set", "engine.max_batch_tokens=4096")
    assert done.status == 4
    assert "Deployment/serval-decode: an-autoscaler owns spec.replicas; --force-conflicts takes over" in sentence(done)
    config = cluster.target().api.get("v1", "ConfigMap", "serval-config")
    assert config is not None
    assert "4096" not in config["data"]["serval.yaml"]
    assert cluster.serval("diff", *PLAIN).status == 4
    assert cluster.serval("apply", *CONFIG, "--no-wait", "--force-conflicts").status == 0
    decode = cluster.target().api.get(*DEPLOYMENT)
    assert decode is not None
    assert decode["spec"]["replicas"] == 1


def test_a_field_of_theirs_that_we_do_not_render_stays(cluster: Cluster) -> None:
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "serval-config", "annotations": {"theirs": "1"}}}
    cluster.put(theirs)
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    config = cluster.target().api.get("v1", "ConfigMap", "serval-config")
    assert config is not None
    assert config["metadata"]["annotations"] == {"theirs": "1"}


def test_the_deployers_role_is_enough_for_every_command(cluster: Cluster, tmp_path: Path) -> None:
    server, _ = need_server(cluster)
    words = (*PLAIN, "--timeout", "60")
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    deployer = server.kubeconfig(tmp_path / "deployer.yaml", token_of(cluster.namespace, "serval-deployer"))
    more = ("--set", "kubernetes.decode.replicas=3", "--set", "engine.max_batch_tokens=4096")
    assert cluster.serval("diff", *PLAIN, *more, kubeconfig=deployer).status == 10
    done = cluster.serval("apply", *words, *more, kubeconfig=deployer)
    assert done.status == 0, done.err
    assert cluster.serval("status", kubeconfig=deployer).status == 0
    pods = [pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"]]
    for command in (["decode", "--replicas", "2"], [pods[0], "--replace"]):
        done = cluster.serval("drain", *command, "--timeout", "60", kubeconfig=deployer)
        assert done.status in (0, 1), done.err
        assert "may not" not in done.err
    other = cluster.serval("apply", "--overlay", "dev-cpu", "--no-wait", kubeconfig=deployer)  # the other flavour
    assert other.status == 0, other.err


def test_whoever_has_no_right_is_told_which_and_which_role_has_it(cluster: Cluster, tmp_path: Path) -> None:
    server, _ = need_server(cluster)
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    router = server.kubeconfig(tmp_path / "router.yaml", token_of(cluster.namespace, "serval-router"))
    done = cluster.serval("apply", *PLAIN, kubeconfig=router)
    assert done.status == 5
    assert sentence(done) == (
        f"system:serviceaccount:{cluster.namespace}:serval-router may not get serviceaccounts in namespace {cluster.namespace} "
        "(ServiceAccount/serval-router): Role serval-deployer of access.yaml has all rights that are needed: an administrator "
        "must apply and bind it"
    )
    assert cluster.serval("status", kubeconfig=router).status == 5
    nobody = server.kubeconfig(tmp_path / "nobody.yaml", "wrong")
    assert "does not know who asks (401)" in sentence(cluster.serval("status", kubeconfig=nobody))


def test_forbidden_in_the_middle_says_what_stands_and_a_second_run_completes(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    message = (
        'networkpolicies.networking.k8s.io "serval-router" is forbidden: User "ann" cannot patch resource "networkpolicies" '
        f'in API group "networking.k8s.io" in the namespace "{cluster.namespace}"'
    )
    server.faults.on.append(Fault("PATCH", "/networkpolicies/", 403, message))
    done = cluster.serval("apply", *CONFIG)
    assert done.status == 5
    assert sentence(done).startswith(
        f"ann may not patch networkpolicies.networking.k8s.io in namespace {cluster.namespace} (NetworkPolicy/serval-router): Role"
    )
    assert "objects stand, up to ConfigMap/serval-config; not yet: NetworkPolicy/serval-router, " in sentence(done)
    server.faults.on.clear()
    completes(cluster)


def test_a_cluster_of_which_a_part_is_there_is_not_ready(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    server.faults.on.append(Fault("PATCH", "/deployments/serval-decode", 403, "not today"))
    assert cluster.serval("apply", *CONFIG).status == 5
    done = cluster.serval("status", "--json")
    assert done.status == 3
    assert json.loads(done.out)["why"] == ["there is no pool decode: `serval k8s apply` makes it"]
    server.faults.on.clear()
    completes(cluster)
    assert cluster.serval("status").status == 0


def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_said(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    server.faults.on.append(Fault("PATCH", "/services/serval", 0, hang_s=20))
    done = cluster.serval("apply", *CONFIG, "--request-timeout", "4")
    assert done.status == 7
    assert f"the API server {server.url} did not answer within 4 s (apply Service/serval); " in sentence(done)
    assert "the same command again completes the rest" in sentence(done)
    server.faults.on.clear()
    completes(cluster)


def test_a_server_that_dies_in_the_middle(cluster: Cluster, tmp_path: Path) -> None:
    server, _ = need_server(cluster)
    server.faults.on.append(Fault("PATCH", "/deployments/", -1, after=1))
    done = cluster.serval("apply", *CONFIG)
    assert done.status == 7
    assert "cannot be reached (apply Deployment/serval-prefill)" in sentence(done)
    assert "up to Deployment/serval-router" in sentence(done)
    server.faults.on.clear()
    completes(cluster)


def test_what_passes_by_itself_is_tried_again(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    server.faults.on += [
        Fault("PATCH", "/configmaps/serval-config", 429, "slow down", times=2),
        Fault("PATCH", "/services/serval", 503, "etcd has no leader", times=2),
        Fault("PATCH", "/deployments/serval-decode", -1, times=2),
    ]
    completes(cluster)
    assert [fault.times for fault in server.faults.on] == [0, 0, 0]


def test_nobody_listens(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "nowhere.yaml"
    file.write_text(cluster.kubeconfig.read_text().replace(cluster.target().api.address, "http://127.0.0.1:1"))
    done = cluster.serval("status", kubeconfig=file)
    assert done.status == 7
    assert "the API server http://127.0.0.1:1 cannot be reached" in sentence(done)


def test_no_kubeconfig_and_no_such_context(cluster: Cluster, tmp_path: Path) -> None:
    missing = cluster.serval("status", kubeconfig=tmp_path / "none.yaml")
    assert missing.status == 2
    assert f"--kubeconfig {tmp_path / 'none.yaml'}: " in sentence(missing)
    unknown = cluster.serval("status", "--context", "moon")
    assert unknown.status == 2
    assert "--context moon: " in sentence(unknown)


@pytest.mark.parametrize(
    ("group", "flavour", "settings", "advice"),
    [
        (
            "ray.io",
            "rayservice",
            (),
            "RayService (ray.io/v1) is unknown to this cluster: install KubeRay, or set kubernetes.flavour",
        ),
        (
            "monitoring.coreos.com",
            "plain",
            ("--set", "kubernetes.monitoring=true"),
            "(monitoring.coreos.com/v1) is unknown to this cluster: install the Prometheus operator, or set kubernetes.monitoring",
        ),
    ],
)
def test_without_its_operator_nothing_is_made(
    cluster: Cluster, group: str, flavour: Flavour, settings: tuple[str, ...], advice: str
) -> None:
    server, _ = need_server(cluster)
    server.forget(group)
    for command in ("apply", "diff"):
        made = ("--create-namespace",) if command == "apply" else ()
        done = cluster.serval(command, *made, "--overlay", "dev-cpu", "--flavour", flavour, *settings)
        assert done.status == 6
        assert advice in sentence(done)
    assert not server.store.of_kind("Namespace", "")[1:]
    completes(cluster)


def test_an_object_that_the_server_refuses(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    server.faults.on.append(
        Fault("PATCH", "/services/serval", 422, 'Service "serval" is invalid: spec.ports: taken', also_dry=True)
    )
    done = cluster.serval("apply", *CONFIG)
    assert done.status == 1
    assert sentence(done) == 'Service/serval is refused (422): Service "serval" is invalid: spec.ports: taken'
