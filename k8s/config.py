"""The `kubernetes` group of settings: what a cluster of machines must know that `serval up` need not."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from k8s.words import (
    ClusterName,
    Cores,
    LabelKey,
    LabelValue,
    NamespaceName,
    ObjectName,
    OptionalName,
    Quantity,
    ResourceName,
    VariableName,
)
from telemetry.metrics import ITL_BUCKETS, TTFT_BUCKETS

Flavour = Literal["rayservice", "plain"]

MOST_PODS = 10_000
"""Of a pool: more is a slip of the hand."""


class Settings(BaseModel):
    """What all groups here share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _an_empty_group_means_defaults(cls, given: Any) -> Any:
        """`slo:` with nothing below it, as everywhere in the settings."""
        if not isinstance(given, dict):
            return given
        groups = {name for name, field in cls.model_fields.items() if isinstance(field.default, Settings)}
        return {name: value for name, value in given.items() if value is not None or name not in groups}


class ImageConfig(Settings):
    """The container image of every pod."""

    name: str = Field("serval:0.1.0-cpu", min_length=1, description="Image with its tag or digest: a target of our Dockerfile.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="As Kubernetes says it. A tag that moves needs Always."
    )
    pull_secrets: tuple[ObjectName, ...] = Field((), description="Names of Secrets that the image is pulled with.")

    @field_validator("name")
    @classmethod
    def _is_pinned(cls, name: str) -> str:
        if not name.isascii() or any(map(str.isspace, name)):
            raise ValueError("must be one word of ASCII, such as registry.example/serval:0.1.0-cpu")
        tag = name.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in name and tag in ("", "latest"):
            raise ValueError("must have a tag other than latest, or a digest: pods of one pool would run different programs")
        return name


class ModelVolume(Settings):
    """Where the model's folder comes from, unless the image holds it."""

    claim: ObjectName = Field(
        description="A PersistentVolumeClaim of the namespace, mounted read-only in every pod at the parent of `model`.",
    )


class RdmaConfig(Settings):
    """How pods get at the network cards that KV travels over."""

    resource: ResourceName = Field(
        "rdma/hca_shared_devices_a",
        description="The device plugin's resource: rdma/hca_shared_devices_a, rdma/ib, nvidia.com/mlnxnics and so on.",
    )
    count: int = Field(
        1, ge=1, description="How many of it a worker takes. On some clouds one means every card of the machine."
    )
    domain_label: LabelKey = Field(
        "topology.kubernetes.io/zone",
        description="Node label whose value is the same for all nodes that reach each other over RDMA. All prefill and decode "
        "workers are placed where it is the same: a transfer between two such domains would fail or crawl.",
    )


class Toleration(Settings):
    """A taint of nodes that a pool may run on all the same."""

    key: LabelKey = Field(description="The taint's key, such as nvidia.com/gpu.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = Field("NoSchedule", description="The taint's effect.")


class PoolConfig(Settings):
    """The pods of one role."""

    replicas: int = Field(1, ge=1, le=MOST_PODS, description="Pods at the start.")
    max_replicas: int | None = Field(
        None, ge=1, le=MOST_PODS, description="Pods at most, for whoever scales. None: `replicas`, which nobody changes."
    )
    cpu: Cores = Field(
        "1",
        description="Cores that are asked for. There is no limit: a throttled loop stutters. Where engine.threads is null, so many "
        "threads compute.",
    )
    memory: Quantity = Field(
        "2Gi",
        description="Memory, asked for and limit alike: weights, engine.kv_memory_bytes, transfer.landing_bytes, shm and 1 Gi.",
    )
    shm: Quantity = Field(
        "64Mi",
        description="Size of /dev/shm, in memory and counted as such. UCX and torch share memory between threads and processes "
        "there; Ray keeps its object store there (80 MB).",
    )
    gpus: int = Field(
        0,
        ge=0,
        le=1,
        description="GPUs of each process. A pod takes one for every process in it that shares its model "
        "(engine.tensor_parallel_size).",
    )
    gpu_resource: ResourceName = Field("nvidia.com/gpu", description="The device plugin's name for a GPU.")
    hugepages_2mi: Quantity | None = Field(
        None, description="Huge pages of 2 MiB, for RDMA registration of large pools. None: none."
    )
    node_selector: dict[LabelKey, LabelValue] = Field({}, description="Labels that a node must have.")
    tolerations: tuple[Toleration, ...] = Field((), description="Taints that are no obstacle.")
    priority_class: OptionalName = Field("", description="PriorityClass of the pods. Empty: the cluster's default.")
    start_timeout_s: int = Field(
        600,
        ge=10,
        description="Seconds until a pod must have started; then it is started again. A large model loads half an hour.",
    )
    env: dict[VariableName, str] = Field(
        {}, description="More environment variables, such as NCCL_SOCKET_IFNAME or UCX_IB_GPU_INDEX."
    )

    @property
    def most(self) -> int:
        return max(self.max_replicas or 0, self.replicas)


class WorkerPoolConfig(PoolConfig):
    """The workers of one role: each is a pod, or with `hosts` a group of pods."""

    replicas: int = Field(1, ge=1, le=MOST_PODS, description="Workers at the start.")
    max_replicas: int | None = Field(
        None, ge=1, le=MOST_PODS, description="Workers at most, for whoever scales. None: `replicas`, which nobody changes."
    )
    hosts: int = Field(
        1,
        ge=1,
        le=64,
        description="Pods of one worker, each on a machine of its own, over which the processes that share its model "
        "(engine.tensor_parallel_size) are spread evenly: the first leads, the others follow, and all start and end together. What "
        "else is said of a pod (cpu, memory and so on) is each one's.",
    )


class SecretsConfig(Settings):
    """Names of Secrets that must be there: what they hold never passes through these manifests. None: not used."""

    front_tls: ObjectName | None = Field(
        None, description="Of type kubernetes.io/tls (tls.crt, tls.key): shown to clients. Sets router.tls."
    )
    api_keys: ObjectName | None = Field(
        None, description="With the file keys.yaml of `serval keys new`. Sets router.keys_file; without it no key is asked for."
    )
    peer_tls: ObjectName | None = Field(
        None,
        description="Prefix of three Secrets, NAME-router, NAME-prefill and NAME-decode, with tls.crt, tls.key and ca.crt each: by "
        "which processes know each other (docs/security.md). Each pod sees its own alone. Sets cluster.tls.",
    )
    split_key: ObjectName | None = Field(
        None,
        description="Name of a Secret whose key `key` is any word that nobody else knows: by it the pods of a worker on several "
        "hosts know each other. Must be there where a pool has more than one of `hosts`.",
    )


class NetworkConfig(Settings):
    """Ports, and who may reach them."""

    kv_ports: tuple[int, int] = Field(
        (20000, 20999), description="First and last TCP port on which UCX listens for KV, so that a policy can name them."
    )
    split_port: int = Field(
        8020,
        ge=1024,
        le=65535,
        description="TCP port on which a worker on several hosts waits for its followers; what they then compute travels on ports "
        "that torch and NCCL choose.",
    )
    client_namespaces: dict[LabelKey, LabelValue] | None = Field(
        None, description="Labels of the namespaces whose pods may reach the front. None: from everywhere."
    )
    monitoring_namespaces: dict[LabelKey, LabelValue] = Field(
        {"kubernetes.io/metadata.name": "monitoring"}, description="Labels of the namespace that Prometheus runs in."
    )
    collector_port: int | None = Field(
        None, ge=1, le=65535, description="TCP port of the trace collector, which pods may then reach. None: no traces leave."
    )

    @field_validator("kv_ports")
    @classmethod
    def _is_a_range(cls, ports: tuple[int, int]) -> tuple[int, int]:
        first, last = ports
        if not 1024 <= first <= last <= 65535:
            raise ValueError("must be two ports from 1024 to 65535, the smaller first")
        return ports


class SloConfig(Settings):
    """What users are promised, for dashboards and alerts."""

    ttft_s: float = Field(
        2.5, description="Seconds to the first token. A bound of the histogram: what lies between is not known."
    )
    itl_s: float = Field(0.1, description="Seconds between two tokens of one answer; likewise a bound.")
    goal: float = Field(
        0.99, gt=0, lt=1, description="Share of requests that are answered, and whose first token comes in time, over 30 days."
    )
    window_scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of all windows and waits of the rules about objectives. 1 for a service. Less to rehearse them: at "
        "1/60 an alert that takes an hour comes within a minute, if Prometheus scrapes every second.",
    )
    runbooks_url: str = Field(
        "docs/runbooks", min_length=1, description="Where alerts send people: the folder of the runbooks."
    )

    @field_validator("ttft_s")
    @classmethod
    def _is_a_ttft_bucket(cls, bound: float) -> float:
        return _bound_of(bound, TTFT_BUCKETS)

    @field_validator("itl_s")
    @classmethod
    def _is_an_itl_bucket(cls, bound: float) -> float:
        return _bound_of(bound, ITL_BUCKETS)


def _bound_of(bound: float, buckets: Sequence[float]) -> float:
    if bound not in buckets:
        raise ValueError(f"must be one of {', '.join(f'{bucket:g}' for bucket in buckets)}")
    return bound


class RayConfig(Settings):
    """What only the RayService flavour needs."""

    head_cpu: Cores = Field("1", description="Cores of the head, which runs Ray's own processes and no worker.")
    head_memory: Quantity = Field("4Gi", description="Memory of the head. Measured at 2.2 GiB with three replicas.")
    autoscale: bool = Field(
        True, description="Ray's autoscaler beside the head adds pods, up to max_replicas, when Serve wants more replicas."
    )
    redis_address: str | None = Field(
        None,
        pattern=r"^[^:\s]+:[0-9]{1,5}$",
        description="host:port of a Redis that keeps the head's state, so that a new head finds its workers. None: without.",
    )
    redis_secret: ObjectName | None = Field(
        None, description="Name of a Secret whose key `password` is that Redis' password. None: it asks for none."
    )
    operator_namespaces: dict[LabelKey, LabelValue] = Field(
        {"kubernetes.io/metadata.name": "kuberay-operator"},
        description="Labels of the namespace that KubeRay's operator runs in.",
    )


class KubernetesConfig(Settings):
    """How a cluster is laid out on Kubernetes."""

    name: ClusterName = Field("serval", description="In front of each object's name: several clusters may share a namespace.")
    namespace: NamespaceName = Field("serval", description="Where the objects are.")
    flavour: Flavour = Field(
        "rayservice",
        description="rayservice: one KubeRay RayService, whose operator must be installed. plain: a Deployment per role, and "
        "nothing else is needed; but workers on several hosts are a LeaderWorkerSet, which needs that operator.",
    )
    image: ImageConfig = ImageConfig()
    model_volume: ModelVolume | None = Field(None, description="Where the model's folder comes from. None: it is in the image.")
    router: PoolConfig = PoolConfig(replicas=2, memory="1Gi")
    prefill: WorkerPoolConfig = WorkerPoolConfig(memory="4Gi")
    decode: WorkerPoolConfig = WorkerPoolConfig(memory="4Gi")
    rdma: RdmaConfig | None = Field(None, description="KV over RDMA. None: over TCP, on the pods' own network.")
    secrets: SecretsConfig = SecretsConfig()
    network: NetworkConfig = NetworkConfig()
    ray: RayConfig = RayConfig()
    slo: SloConfig = SloConfig()
    monitoring: bool = Field(
        True,
        description="Objects for the Prometheus operator (PodMonitor, PrometheusRule), whose CRDs must be installed, and "
        "dashboards as ConfigMaps for Grafana.",
    )
    monitors: Literal["pods", "services"] = Field(
        "pods",
        description="pods: PodMonitors. services: ServiceMonitors, and headless Services for them, where Prometheus is set to look "
        "for those alone. One of the two: with both every figure would be counted twice.",
    )
    deregister_s: int = Field(
        5,
        ge=0,
        description="Seconds that a router goes on as ever before it drains: load balancers take that long to send new clients "
        "elsewhere.",
    )
