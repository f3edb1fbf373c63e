"""The `kubernetes` settings: what is wrong is one line that names the setting; who may talk to whom."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from k8s.config import KubernetesConfig
from k8s.deployment import load
from k8s.objects import ROLES
from k8s.ray import serve_config
from k8s.render import objects
from protocol.errors import ConfigError
from serving.cli import app
from serving.config import parse_settings
from tests.unit.k8s.k8s_support import all_objects, each_deployment, of_kind, pods


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kubernetes.image.name", "serval", "kubernetes.image.name: must have a tag other than latest"),
        ("kubernetes.image.name", "host:5000/serval:latest", "kubernetes.image.name: must have a tag other than latest"),
        ("kubernetes.name", "Serval", "kubernetes.name: "),
        ("kubernetes.decode.gpus", 8, "kubernetes.decode.gpus: must be less than or equal to 1, not 8"),
        ("kubernetes.decode.replica", 2, "kubernetes.decode.replica: no such setting; did you mean replicas?"),
        ("kubernetes.prefill.memory", "lots", "kubernetes.prefill.memory: "),
        ("kubernetes.prefill.cpu", "2Gi", "kubernetes.prefill.cpu: "),
        ("kubernetes.network.kv_ports", [9, 10], "kubernetes.network.kv_ports: must be two ports from 1024 to 65535"),
        ("transfer.net_device", "lo", "transfer.net_device: lo reaches no other pod"),
        ("router.http_port", 80, "router.http_port: must be 1024 or more on Kubernetes"),
        ("cluster.metrics_port", 0, "cluster.metrics_port: must be a port on Kubernetes"),
        ("kubernetes.ray.redis_address", "redis", "kubernetes.ray.redis_address: "),
        ("model", "here", "model: must be the absolute path"),
        ("kubernetes", 5, "kubernetes: must be a mapping of settings"),
        ("cluster", [1], "cluster: must be a mapping of settings"),
        ("kubernetes.name", "größe", "kubernetes.name: must be at most 32 small letters, digits and -"),
        ("kubernetes.namespace", "My Team", "kubernetes.namespace: must be at most 63 small letters, digits and -"),
        ("kubernetes.namespace", "a" * 64, "kubernetes.namespace: must be at most 63 small letters, digits and -"),
        ("kubernetes.decode.cpu", "-1", "kubernetes.decode.cpu: must be an amount above 0 such as 4 or 500m"),
        ("kubernetes.decode.cpu", "0.0", "kubernetes.decode.cpu: must be an amount above 0"),
        ("kubernetes.decode.cpu", True, "kubernetes.decode.cpu: must be a valid string, not True"),
        ("kubernetes.decode.memory", "4GiB", "kubernetes.decode.memory: must be an amount above 0"),
        ("kubernetes.decode.replicas", 99_999_999_999, "kubernetes.decode.replicas: must be less than or equal to 10000"),
        ("kubernetes.decode.gpu_resource", "gpu", "kubernetes.decode.gpu_resource: must be a device plugin's resource"),
        ("kubernetes.decode.priority_class", "A B", "kubernetes.decode.priority_class: must be the name of an object"),
        ("kubernetes.decode.env", {"A=B": "c"}, "kubernetes.decode.env.A=B.[key]: must be a variable's name"),
        ("kubernetes.decode.node_selector", {"a": "b c"}, "kubernetes.decode.node_selector.a: must be a label's value"),
        ("kubernetes.secrets.api_keys", "Keys", "kubernetes.secrets.api_keys: must be the name of an object"),
        ("kubernetes.image.name", "a b:1", "kubernetes.image.name: must be one word of ASCII"),
        ("router.grpc_port", 8000, "router.grpc_port: must be another port than router.http_port, not 8000 too"),
        (
            "router.cost.prefill.gpu_hour_usd",
            float("inf"),
            "router.cost.prefill.gpu_hour_usd: must be a finite number, not inf",
        ),
        ("engine.block_size", 0, "engine.block_size: must be greater than or equal to 1, not 0"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(None, None, {name: value})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_what_kubernetes_takes_is_taken() -> None:
    long_name = "ml-platform-inference-production-eu-west-1"
    own = {"name": "s", "namespace": long_name, "decode": {"cpu": 4, "memory": "16G"}, "prefill": {"cpu": 0.5}}
    made = load(None, None, {f"kubernetes.{name}": value for name, value in own.items()}).kubernetes
    assert (made.namespace, made.decode.cpu, made.decode.memory, made.prefill.cpu) == (long_name, "4", "16G", "0.5")
    assert load(None, None, {"kubernetes.namespace": "1team"}).kubernetes.namespace == "1team"


def test_an_empty_group_means_what_it_would_be_without(tmp_path: Path) -> None:
    file = tmp_path / "serval.yaml"
    file.write_text("kubernetes:\n  slo:\n  decode:\n  ")
    for overlay in (None, "gpu"):
        made, without = load(file, overlay, {}), load(None, overlay, {})
        assert (made.kubernetes.slo, made.kubernetes.decode) == (without.kubernetes.slo, without.kubernetes.decode)


def test_a_worker_is_one_pod_with_a_gpu_for_each_of_its_processes() -> None:
    split = {"engine.tensor_parallel_size": 4}
    with pytest.raises(ConfigError, match=r"^engine.local_followers: must be left out on Kubernetes: it follows from"):
        load(None, "gpu", split | {"engine.local_followers": 1})
    for flavour in ("plain", "rayservice"):
        found = pods(objects(load(None, "gpu", split | {"kubernetes.flavour": flavour})))
        gpus = {role: found[role]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for role in ROLES}
        assert gpus == {"router": None, "prefill": "4", "decode": "4"}
    served = serve_config(load(None, "gpu", split))["applications"][0]["deployments"]
    assert [one["ray_actor_options"]["num_gpus"] for one in served] == [0, 4, 4]


@pytest.mark.parametrize("flavour", ["plain", "rayservice"])
def test_threads_that_nobody_set_are_those_of_the_pod_whatever_machine_renders(
    flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {"prefill_engine": {"threads": 5}, "decode_engine": {"threads": None}}
    settings = {"kubernetes.flavour": flavour} | engines
    cores = {"kubernetes.router.cpu": "250m", "kubernetes.decode.cpu": "2500m", "kubernetes.prefill.cpu": "8"}
    found = []
    for count in (1, 61):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)))
        found.append(objects(load(None, None, settings | cores)))
    assert found[0] == found[1]
    variables = {
        role: {one["name"]: one.get("value") for one in pods(found[0])[role]["spec"]["containers"][0]["env"]} for role in ROLES
    }
    assert {role: own["OMP_NUM_THREADS"] for role, own in variables.items()} == {"router": "1", "prefill": "5", "decode": "3"}
    assert {role: own["MKL_NUM_THREADS"] for role, own in variables.items()} == {"router": "1", "prefill": "5", "decode": "3"}


def test_null_in_a_file_switches_off_a_group_that_may_be_absent_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "serval.yaml"
    file.write_text("kubernetes:\n  rdma: null\n  prefill:\n")
    made, plain = load(file, "gpu", {}), load(None, "gpu", {})
    assert plain.kubernetes.rdma is not None and made.kubernetes.rdma is None
    assert made.kubernetes.prefill == plain.kubernetes.prefill, "nothing below a name says nothing"


def test_null_switches_off_what_an_overlay_has_set() -> None:
    made = load(None, "gpu", parse_settings(["kubernetes.rdma=null", "kubernetes.secrets.api_keys=null"]))
    assert (made.kubernetes.rdma, made.kubernetes.secrets.api_keys) == (None, None)
    assert made.config.router.keys_file is None


def test_the_heads_state_may_outlive_it() -> None:
    settings = {"kubernetes__ray__redis_address": "redis.db:6379", "kubernetes__ray__redis_secret": "redis"}
    found = all_objects(None, "rayservice", **settings)
    options = of_kind(found, "RayService")["serval"]["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    password = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert options == {"redisAddress": "redis.db:6379", "redisPassword": password}
    assert ("anyone", "6379") in reached(found, "serval-head", "egress")


@pytest.mark.parametrize("overlay", ["gpu", None])
def test_figures_by_service_are_those_of_every_pod_once(overlay: str | None) -> None:
    found = all_objects(overlay, "plain", kubernetes__monitors="services")
    assert not of_kind(found, "PodMonitor")
    services, monitors = of_kind(found, "Service"), of_kind(found, "ServiceMonitor")
    by_pod = of_kind(all_objects(overlay, "plain"), "PodMonitor")
    for role in ROLES:
        name = f"serval-{role}-metrics"
        chosen = monitors[name]["spec"]["selector"]["matchLabels"].items()
        assert [one for one, service in services.items() if chosen <= service["metadata"]["labels"].items()] == [name]
        spec = services[name]["spec"]
        assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
        assert spec["selector"].items() <= pods(found)[role]["metadata"]["labels"].items()
        [endpoint] = monitors[name]["spec"]["endpoints"]
        named = {port["name"]: port["containerPort"] for port in pods(found)[role]["spec"]["containers"][0]["ports"]}
        assert spec["ports"] == [
            {"name": endpoint["port"], "port": named[endpoint["port"]], "targetPort": endpoint["port"], "protocol": "TCP"}
        ]
        part = "routers" if role == "router" else "workers"
        assert [endpoint] == by_pod[f"serval-{part}"]["spec"]["podMetricsEndpoints"]


def test_an_unknown_overlay_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--overlay moon: must be one of dev-cpu, gpu, longcat-flash"):
        load(None, "moon", {})


def test_the_file_wins_over_the_overlay_and_a_flag_over_both(tmp_path: Path) -> None:
    file = tmp_path / "serval.yaml"
    file.write_text("kubernetes: {decode: {replicas: 5}, prefill: {replicas: 3}}\nengine: {block_size: 32}\n")
    made = load(file, "gpu", {"kubernetes.prefill.replicas": 4})
    assert (made.kubernetes.decode.replicas, made.kubernetes.prefill.replicas) == (5, 4)
    assert made.kubernetes.decode.gpus == 1
    assert made.config.engine.block_size == 32


def test_every_setting_says_what_it_is() -> None:
    def check(model: type[BaseModel], place: str) -> int:
        count = 0
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                count += check(inner, f"{place}.{name}")
            else:
                assert field.description, f"{place}.{name}"
                count += 1
        return count

    assert check(KubernetesConfig, "kubernetes") > 40


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder, says in ((file, "File exists"), (file / "in", "Not a directory")):
        with pytest.raises(ConfigError) as raised:
            app(["k8s", "render", "--out", str(folder)], standalone_mode=False)
        assert str(raised.value) == f"--out {folder}: {says}"


def test_the_command_writes_files_or_prints(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "made"
    command = ["k8s", "render", "--overlay", "gpu", "--flavour", "plain"]
    app([*command, "--out", str(folder)], standalone_mode=False)
    names = {path.name for path in folder.iterdir()}
    assert {"kustomization.yaml", "workloads.yaml", "services.yaml", "policies.yaml", "config.yaml", "access.yaml"} <= names
    capsys.readouterr()
    app([*command, "--namespace", "other"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "namespace: other" in printed
    assert "namespace: serval\n" not in printed


def reached(found: list[dict[str, Any]], policy: str, direction: str) -> set[tuple[str, str]]:
    """(who, port or range) that a policy lets in or out."""
    side = "from" if direction == "ingress" else "to"
    allowed = set()
    for rule in of_kind(found, "NetworkPolicy")[policy]["spec"][direction]:
        peers = [
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] if "podSelector" in peer else "namespace"
            for peer in rule.get(side, [{}])
            if peer
        ] or ["anyone"]
        for port in rule.get("ports", []):
            ports = f"{port['port']}-{port['endPort']}" if "endPort" in port else str(port["port"])
            allowed |= {(peer, ports) for peer in peers}
    return allowed


@each_deployment
def test_each_role_hears_and_says_what_it_must(overlay: str | None, flavour: str) -> None:
    found = all_objects(overlay, flavour)
    kv, names = "20000-20999", ("anyone", "53")
    hears = {role: reached(found, f"serval-{role}", "ingress") for role in ("router", "prefill", "decode")}
    says = {role: reached(found, f"serval-{role}", "egress") for role in ("router", "prefill", "decode")}
    front = {("anyone", "8000"), ("anyone", "8001"), ("namespace", "8000")}
    assert hears["router"] == front | {("prefill", "8002"), ("decode", "8002")}
    assert hears["prefill"] == {("decode", "8010"), ("decode", kv), ("namespace", "9101")}
    assert hears["decode"] == {("prefill", kv), ("namespace", "9102")}
    assert says["router"] == {names}
    assert says["prefill"] == {names, ("router", "8002"), ("decode", kv)}
    assert says["decode"] == {names, ("router", "8002"), ("prefill", "8010"), ("prefill", kv)}


def test_clients_can_be_limited_to_namespaces() -> None:
    found = all_objects(None, "plain", kubernetes__network__client_namespaces={"team": "chat"})
    assert ("anyone", "8000") not in reached(found, "serval-router", "ingress")
    assert ("namespace", "8001") in reached(found, "serval-router", "ingress")


@each_deployment
def test_the_deployer_may_write_what_is_rendered_and_no_secret(overlay: str | None, flavour: str) -> None:
    found = all_objects(overlay, flavour)
    role = of_kind(found, "Role")["serval-deployer"]
    rules = [rule for rule in role["rules"] if "patch" in rule["verbs"]]
    writable = {(group, kind) for rule in rules for group in rule["apiGroups"] for kind in rule["resources"]}
    for one in found:
        group = one["apiVersion"].rpartition("/")[0]
        plural = {"NetworkPolicy": "networkpolicies"}.get(one["kind"], f"{one['kind'].lower()}s")
        assert (group, plural) in writable
    assert not {"secrets", "*"} & {kind for _, kind in writable}
    assert [one["metadata"]["name"] for one in found if one["kind"] == "ClusterRole"] == []
