"""A worker on several hosts: its pods hold each process once, find each other, live as one and are counted as one."""

import re
from typing import Any

import pytest
import yaml

from k8s.deployment import Deployment, load
from k8s.render import objects
from protocol.errors import ConfigError
from serving import followers, process
from serving.config import parse_settings
from tests.unit.k8s.k8s_support import deployment, of_kind, pods

KEY = {"kubernetes.secrets.split_key": "split"}


def made_of(flavour: str, **settings: Any) -> Deployment:
    """16 processes on two hosts each, but for prefill workers with `prefill`."""
    return deployment("longcat-flash", flavour, **settings)


def group(made: Deployment, role: str) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(objects(made), "LeaderWorkerSet")[f"serval-{role}"]["spec"]
    return spec


def parts(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The containers of the leader and of a follower."""
    inner = spec["leaderWorkerTemplate"]
    leader, follower = (inner[f"{part}Template"]["spec"]["containers"][0] for part in ("leader", "worker"))
    return leader, follower


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_each_process_is_in_one_pod_and_has_a_gpu(role: str, hosts: int) -> None:
    made = made_of("plain", **{f"kubernetes__{role}__hosts": hosts})
    spec = group(made, role)
    leader, follower = parts(spec)
    assert spec["leaderWorkerTemplate"]["size"] == hosts
    own = process.argument_parser().parse_args(leader["args"])
    theirs = followers.argument_parser().parse_args([word.replace("$(LWS_WORKER_INDEX)", "1") for word in follower["args"]])
    settings = parse_settings(own.set)
    assert parse_settings(theirs.set).items() <= settings.items()
    engine = made.config.engine.model_copy(update={"local_followers": settings["engine.local_followers"]})
    ranks = [list(range(engine.own_followers + 1)), *(list(followers.ranks_of(engine, host)) for host in range(1, hosts))]
    assert [rank for one in ranks for rank in one] == list(range(16))
    assert {len(one) for one in ranks} == {int(leader["resources"]["limits"]["nvidia.com/gpu"])}
    assert leader["resources"] == follower["resources"]
    with pytest.raises(ConfigError, match="with a machine"):
        followers.ranks_of(engine, hosts)


def test_followers_find_the_leader_and_show_the_same_key() -> None:
    leader, follower = parts(group(made_of("plain"), "decode"))
    own = parse_settings(process.argument_parser().parse_args(leader["args"]).set)
    assert own["engine.split_address"] == "$(POD_IP):8020"
    assert "--leader=$(LWS_LEADER_ADDRESS):8020" in follower["args"]
    key = {"name": "SERVAL_SPLIT_KEY", "valueFrom": {"secretKeyRef": {"name": "serval-split", "key": "key"}}}
    assert key in leader["env"]
    assert leader["env"] == follower["env"]


def test_a_group_lives_as_one_and_a_follower_outlasts_its_leaders_drain() -> None:
    made = made_of("plain")
    spec = group(made, "decode")
    inner = spec["leaderWorkerTemplate"]
    assert inner["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {"maxSurge": 1, "maxUnavailable": 0}
    leader, follower = inner["leaderTemplate"]["spec"], inner["workerTemplate"]["spec"]
    assert follower["terminationGracePeriodSeconds"] > leader["terminationGracePeriodSeconds"] > 600
    same = ("serviceAccountName", "securityContext", "volumes", "tolerations", "nodeSelector", "affinity")
    assert {name: follower[name] for name in same} == {name: leader[name] for name in same}
    (one,), (other,) = leader["containers"], follower["containers"]
    assert other["securityContext"] == one["securityContext"]
    assert inner["workerTemplate"]["metadata"] == inner["leaderTemplate"]["metadata"]


def test_a_follower_is_probed_and_not_scraped() -> None:
    _, follower = parts(group(made_of("plain"), "decode"))
    (port,) = follower["ports"]
    assert (port["name"], port["containerPort"]) == ("health", 9102)
    assert {follower[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {"health"}


def test_pods_of_a_role_may_talk_to_each_other_where_a_worker_is_several() -> None:
    def peers(found: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
        spec = of_kind(found, "NetworkPolicy")[f"serval-{role}"]["spec"]
        return [
            peer
            for rule in spec["ingress"] + spec["egress"]
            if "ports" not in rule
            for peer in rule.get("from", rule.get("to"))
        ]

    found = objects(made_of("plain", kubernetes__prefill__hosts=1))
    own = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in peers(found, "decode")]
    assert own == ["decode", "decode"]
    assert peers(found, "prefill") == peers(found, "router") == []


def test_the_pools_may_be_laid_out_differently() -> None:
    made = made_of("plain", kubernetes__prefill__hosts=1, prefill_engine__tensor_parallel_size=8)
    found = objects(made)
    assert of_kind(found, "LeaderWorkerSet").keys() == {"serval-decode"}
    assert of_kind(found, "Deployment").keys() == {"serval-router", "serval-prefill"}
    gpus = {
        role: pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for role, pod in pods(found).items()
    }
    assert gpus == {"router": None, "prefill": "8", "decode": "8"}
    assert not [word for word in pods(found)["prefill"]["spec"]["containers"][0]["args"] if "engine." in word]


def test_under_ray_a_replica_has_a_machine_for_each_host() -> None:
    (service,) = of_kind(objects(made_of("rayservice")), "RayService").values()
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["hosts"] == {"prefill": 2, "decode": 2}
    decode = next(one for one in application["deployments"] if one["name"] == "DecodeWorker")
    assert decode["placement_group_bundles"] == [{"decode": 1, "GPU": 8}] * 2
    assert decode["placement_group_strategy"] == "STRICT_SPREAD"
    assert decode["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 8, "resources": {"decode": 1}}
    groups = {one["groupName"]: one for one in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    assert (groups["decode"]["numOfHosts"], groups["decode"]["replicas"]) == (2, 2)
    assert "numOfHosts" not in groups["router"]
    names = {one["name"] for one in groups["decode"]["template"]["spec"]["containers"][0]["env"]}
    assert "SERVAL_SPLIT_KEY" in names


def test_a_budget_takes_one_worker_at_a_time() -> None:
    """Kubernetes cannot tell how many pods a RayCluster should have, so its budgets say how many must be there."""
    plain, ray = (of_kind(objects(made_of(flavour)), "PodDisruptionBudget") for flavour in ("plain", "rayservice"))
    assert {one["spec"].get("maxUnavailable") for one in plain.values()} == {1}
    assert {name: one["spec"]["minAvailable"] for name, one in ray.items()} == {
        "serval-router": 2,
        "serval-prefill": 1,
        "serval-decode": 3,
    }
    scaled = objects(made_of("rayservice", scaling={"decode": {"min": 1, "max": 3}}))
    assert of_kind(scaled, "PodDisruptionBudget")["serval-decode"]["spec"]["minAvailable"] == 1
    alone = objects(deployment(None, "rayservice", scaling={"decode": {"min": 1, "max": 5}}))
    budget = of_kind(alone, "PodDisruptionBudget")["serval-decode"]
    assert budget["spec"]["minAvailable"] == 0, "what docs/kubernetes.md warns of"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            KEY | {"kubernetes.decode.hosts": 3, "engine.tensor_parallel_size": 8},
            "kubernetes.decode.hosts: 3 do not share out the 8",
        ),
        (
            KEY | {"kubernetes.prefill.hosts": 2},
            "kubernetes.prefill.hosts: 2 do not share out the 1 processes of a prefill worker",
        ),
        (
            {"kubernetes.decode.hosts": 2, "decode_engine.tensor_parallel_size": 8},
            "kubernetes.secrets.split_key: must name a Secret: a decode worker is 2 pods",
        ),
        ({"decode_engine.local_followers": 1}, "engine.local_followers: must be left out on Kubernetes: it follows from"),
        ({"kubernetes.router.hosts": 2}, "kubernetes.router.hosts: no such setting"),
    ],
)
def test_what_cannot_be_laid_out_names_the_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load(None, "gpu", settings)
