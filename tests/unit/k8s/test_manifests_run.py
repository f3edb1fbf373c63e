"""What the manifests say about our own programs is true: commands, settings, ports, probes, times, Serve's config file."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.tiny import write_tiny_llama
from k8s.deployment import CONFIG_FILE, Deployment
from k8s.objects import ROLES
from k8s.render import objects
from serving import process
from serving.config import ServalConfig
from serving.roles import Member, Role, metrics_port, worker_port
from tests.unit.k8s.k8s_support import all_objects, deployment, each_deployment, of_kind, pods
from worker.router_links import DNS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def config_in_pod(made: Deployment, role: Role, tmp_path: Path) -> tuple[ServalConfig, Any]:
    """What the container's own command line comes to, with the ConfigMap where it is mounted."""
    found = objects(made)
    (tmp_path / CONFIG_FILE).write_text(of_kind(found, "ConfigMap")["serval-config"]["data"][CONFIG_FILE])
    container = pods(found)[role]["spec"]["containers"][0]
    known = {"POD_NAME": f"serval-{role}-7d9f-x2z", "POD_IP": "127.0.0.1"}
    assert {one["name"] for one in container["env"] if "fieldRef" in one.get("valueFrom", {})} == known.keys()
    assert container["command"] == ["python", "-m", "serving.process"]
    words = container["args"]
    for name, value in known.items():
        words = [word.replace(f"$({name})", value) for word in words]
    words = [word.replace("/etc/serval/config", str(tmp_path)) for word in words]
    arguments = process.argument_parser().parse_args(words)
    return process._read_config(arguments), arguments


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("overlay", [None, "dev-cpu", "gpu", "longcat-flash"])
def test_a_container_reads_the_configuration_that_was_rendered(
    overlay: str | None, role: Role, model: Path, tmp_path: Path
) -> None:
    made = deployment(overlay, "plain", model=str(model), engine__speculation="off")
    config, arguments = config_in_pod(made, role, tmp_path)
    pod = f"serval-{role}-7d9f-x2z"
    own = {"host": "127.0.0.1"}
    router = own | ({"name": pod} if role == "router" else {})
    expected = made.config.model_copy(
        update={
            "cluster": made.config.cluster.model_copy(update=own),
            "router": made.config.router.model_copy(update=router),
        }
    )
    if (hosts := made.hosts_of(role)) > 1:
        own = made.config.engine.tensor_parallel_size // hosts - 1
        split = {"local_followers": own, "split_address": f"127.0.0.1:{made.kubernetes.network.split_port}"}
        expected = expected.model_copy(update={"engine": made.config.engine.model_copy(update=split)})
    assert config == expected
    assert (arguments.role, arguments.name) == (role, pod)
    assert arguments.router == ([] if role == "router" else ["dns:serval-routers.serval.svc:8002"])


@each_deployment
def test_ports_are_those_that_processes_listen_on(overlay: str | None, flavour: str) -> None:
    made = deployment(overlay, flavour)
    found = pods(objects(made))
    for role in ROLES:
        named = {port["name"]: port["containerPort"] for port in found[role]["spec"]["containers"][0]["ports"]}
        if role == "router":
            router = made.config.router
            assert named == {"http": router.http_port, "grpc": router.grpc_port, "link": router.link_port}
        else:
            member = Member(role)
            assert named == {"grpc": worker_port(made.config, member), "metrics": metrics_port(made.config, member)}
        assert 0 not in named.values()


@each_deployment
def test_a_pod_has_time_to_drain(overlay: str | None, flavour: str) -> None:
    made = deployment(overlay, flavour)
    cluster = made.config.cluster
    for role, template in pods(objects(made)).items():
        spec = template["spec"]
        sleep_s = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if role != "head":
            assert spec["terminationGracePeriodSeconds"] > sleep_s + cluster.drain_timeout_s + cluster.stop_timeout_s
        if role != "head" and flavour == "rayservice":
            command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert command[:3] == ["python", "-m", "serving.pod_drain"]
            waits = [f"--wait-s={made.kubernetes.deregister_s}"] if role == "router" else []
            assert command[3:] == waits
    if flavour == "plain":
        assert sum("lifecycle" in one["spec"]["containers"][0] for one in pods(objects(made)).values()) == 1


@each_deployment
def test_probes_ask_where_something_answers(overlay: str | None, flavour: str) -> None:
    made = deployment(overlay, flavour)
    found = pods(objects(made))
    scheme = "HTTPS" if made.config.router.tls else "HTTP"
    assert found["router"]["spec"]["containers"][0]["readinessProbe"]["httpGet"] == {
        "path": "/ready",
        "port": "http",
        "scheme": scheme,
    }
    for role in ROLES:
        container = found[role]["spec"]["containers"][0]
        start = container["startupProbe"]
        pool = getattr(made.kubernetes, role)
        assert start["periodSeconds"] * start["failureThreshold"] >= pool.start_timeout_s
        if flavour == "plain":
            paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
            assert paths == ["/health", "/health", "/ready"]
        else:
            assert start["httpGet"]["path"] == "/api/local_raylet_healthz"


@each_deployment
def test_routers_are_found_before_they_are_ready(overlay: str | None, flavour: str) -> None:
    """They become ready when workers have joined."""
    made = deployment(overlay, flavour)
    services = of_kind(objects(made), "Service")
    routers, grpc = services["serval-routers"]["spec"], services["serval-grpc"]["spec"]
    assert (routers["clusterIP"], routers["publishNotReadyAddresses"]) == ("None", True)
    assert grpc["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in grpc
    if flavour == "rayservice":
        service = of_kind(objects(made), "RayService")["serval"]
        arguments = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
        assert arguments["routers"] == f"{DNS}serval-routers.serval.svc:{made.config.router.link_port}"


@pytest.mark.ray
@pytest.mark.parametrize("overlay", [None, "dev-cpu", "gpu", "longcat-flash"])
def test_serve_takes_its_config_file(overlay: str | None, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.serve._private.build_app import build_app
    from ray.serve.schema import ServeDeploySchema

    made = deployment(overlay, "rayservice")
    found = objects(made)
    text = of_kind(found, "RayService")["serval"]["spec"]["serveConfigV2"]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [application] = schema.applications
    module, _, builder = application.import_path.partition(":")
    folder, builder_of = tmp_path / CONFIG_FILE, getattr(importlib.import_module(module), builder)
    folder.write_text(of_kind(found, "ConfigMap")["serval-config"]["data"][CONFIG_FILE])
    arguments_type = importlib.import_module(module).ClusterArguments
    arguments = arguments_type.model_validate(application.args | {"config": folder})
    built = build_app(builder_of(arguments), name="serval")
    deployments = {one.name: one for one in built.deployments}
    assert {one.name for one in application.deployments} == deployments.keys()
    for one in deployments.values():
        role, config_json, routers, spread = one.init_args[:4]
        assert routers == (application.args["routers"],)
        assert (spread.hosts, spread.port > 0) == (made.hosts_of(role), overlay == "longcat-flash")
        assert ServalConfig.model_validate_json(config_json) == made.config
    groups = of_kind(found, "RayService")["serval"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for group, one in zip(groups, application.deployments, strict=True):
        assert one.ray_actor_options.resources == {group["groupName"]: 1}
        assert one.num_replicas == group["replicas"] <= group["maxReplicas"]


@each_deployment
def test_nobody_is_root_and_only_rdma_pins_memory(overlay: str | None, flavour: str) -> None:
    made = deployment(overlay, flavour)
    for role, template in pods(objects(made)).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.get("automountServiceAccountToken") is (None if role == "head" else False)
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
            pins = made.kubernetes.rdma is not None and role in ("prefill", "decode")
            assert context["capabilities"] == {"drop": ["ALL"]} | ({"add": ["IPC_LOCK"]} if pins else {})


@each_deployment
def test_a_pod_sees_its_own_secrets_alone(overlay: str | None, flavour: str) -> None:
    made = deployment(overlay, flavour)
    names = made.kubernetes.secrets
    for role, template in pods(objects(made)).items():
        mounted = {volume["secret"]["secretName"] for volume in template["spec"]["volumes"] if "secret" in volume}
        own = {f"{names.peer_tls}-{role}"} if names.peer_tls and role != "head" else set()
        front = {name for name in (names.front_tls, names.api_keys) if name} if role == "router" else set()
        assert mounted == own | front
    assert not of_kind(objects(made), "Secret")


def test_a_changed_setting_rolls_the_pods_and_more_replicas_do_not() -> None:
    def checksums(**settings: Any) -> set[str]:
        found = all_objects("gpu", "plain", **settings)
        return {one["metadata"]["annotations"]["serval/config-checksum"] for one in pods(found).values()}

    before = checksums()
    assert len(before) == 1
    assert checksums(kubernetes__decode__replicas=7) == before
    assert checksums(engine__max_batch_tokens=4096).isdisjoint(before)
