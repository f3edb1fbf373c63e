"""The container of one role: what it runs, what it asks for, how it is watched and ended."""

import math
from typing import Any

from k8s.config import PoolConfig
from k8s.deployment import CONFIG_FILE, CONFIG_FOLDER, Deployment
from k8s.objects import host_of
from k8s.volumes import mounts
from serving.child import library_settings
from serving.roles import Member, Role, metrics_port, worker_port
from worker.router_links import DNS

COMMAND = ["python", "-m", "serving.process"]
START_PERIOD_S = 5
SPLIT_KEY_VARIABLE = "SERVAL_SPLIT_KEY"
"""As engine/split/leader.py reads it, which needs torch."""
CACHE_FOLDER = "/var/cache/serval"


def pool_of(deployment: Deployment, role: Role) -> PoolConfig:
    kubernetes = deployment.kubernetes
    return {"router": kubernetes.router, "prefill": kubernetes.prefill, "decode": kubernetes.decode}[role]


def gpus_of(deployment: Deployment, role: Role) -> int:
    """GPUs of one pod: one for each process that shares the model in it."""
    return pool_of(deployment, role).gpus * deployment.processes_of(role)


def cores_of(deployment: Deployment, role: Role) -> int:
    """That a pod asks for; a part of one is a thread's, too. The node's others are other pods'."""
    cpu = pool_of(deployment, role).cpu
    return max(1, math.ceil(float(cpu.removesuffix("m")) / (1000 if cpu.endswith("m") else 1)))


def workers_at_least(deployment: Deployment, role: Role) -> int:
    """Members of the role that there are whatever the load: the scaling policy's limit, where there is one."""
    scaling = deployment.config.scaling
    if scaling is None or role == "router":
        return pool_of(deployment, role).replicas
    return (scaling.prefill if role == "prefill" else scaling.decode).min


def routers_address(deployment: Deployment) -> str:
    """What workers are told: every address behind the name is a router."""
    return f"{DNS}{host_of(deployment, 'routers')}:{deployment.config.router.link_port}"


def container(deployment: Deployment, role: Role) -> dict[str, Any]:
    """Of a pod that runs one process of `role` and nothing else."""
    return {
        "name": role,
        "image": deployment.kubernetes.image.name,
        "imagePullPolicy": deployment.kubernetes.image.pull_policy,
        "command": COMMAND,
        "args": arguments(deployment, role),
        "env": environment(deployment, role),
        "ports": ports(deployment, role),
        "resources": resources(deployment, role),
        "securityContext": security(deployment, role),
        "volumeMounts": mounts(deployment, role),
        **probes(deployment, role),
        **lifecycle(deployment, role),
    }


def arguments(deployment: Deployment, role: Role) -> list[str]:
    """`python -m serving.process`'s. Kubernetes puts in what stands in $( )."""
    words = identity(role)
    if role == "router":
        return [*words, "--set=router.name=$(POD_NAME)"]
    return [*words, *split(deployment, role), f"--router={routers_address(deployment)}"]


def identity(role: Role) -> list[str]:
    """What every process of ours is told of the pod that it is in."""
    return [f"--role={role}", "--name=$(POD_NAME)", f"--config={CONFIG_FOLDER}/{CONFIG_FILE}", "--set=cluster.host=$(POD_IP)"]


def split(deployment: Deployment, role: Role) -> list[str]:
    """Of a worker on several hosts: how many of its processes are in each pod, and where the first waits for the others."""
    if deployment.hosts_of(role) == 1:
        return []
    own, port = deployment.processes_of(role) - 1, deployment.kubernetes.network.split_port
    return [f"--set=engine.local_followers={own}", f"--set=engine.split_address=$(POD_IP):{port}"]


def environment(deployment: Deployment, role: Role) -> list[dict[str, Any]]:
    from_pod = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
    fields = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in from_pod.items()]
    # A name or path of the machine that renders has no place in a pod: only what the settings say.
    values = library_settings(deployment.config, role, cores_of(deployment, role))
    values |= {"HOME": "/tmp", "SERVAL_CACHE": CACHE_FOLDER}
    if role != "router":
        first, last = deployment.kubernetes.network.kv_ports
        values["UCX_TCP_PORT_RANGE"] = f"{first}-{last}"
    values |= pool_of(deployment, role).env
    if deployment.hosts_of(role) > 1:
        key = {"secretKeyRef": {"name": deployment.kubernetes.secrets.split_key, "key": "key"}}
        fields.append({"name": SPLIT_KEY_VARIABLE, "valueFrom": key})
    return fields + [{"name": name, "value": value} for name, value in sorted(values.items())]


def port_numbers(deployment: Deployment, role: Role) -> dict[str, int]:
    """TCP ports by name, but for KV's, which are a range."""
    config = deployment.config
    if role == "router":
        return {"http": config.router.http_port, "grpc": config.router.grpc_port, "link": config.router.link_port}
    member = Member(role)
    return {"grpc": worker_port(config, member), "metrics": metrics_port(config, member)}


def ports(deployment: Deployment, role: Role) -> list[dict[str, Any]]:
    numbers = port_numbers(deployment, role)
    return [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in numbers.items()]


def resources(deployment: Deployment, role: Role) -> dict[str, Any]:
    pool, rdma = pool_of(deployment, role), deployment.kubernetes.rdma
    limits: dict[str, str] = {"memory": pool.memory}
    if gpus := gpus_of(deployment, role):
        limits[pool.gpu_resource] = str(gpus)
    if rdma and role != "router":
        limits[rdma.resource] = str(rdma.count)
    if pool.hugepages_2mi:
        limits["hugepages-2Mi"] = pool.hugepages_2mi
    # Kubernetes insists that what cannot be shared is asked for exactly as it is limited.
    return {"requests": {"cpu": pool.cpu} | limits, "limits": limits}


def security(deployment: Deployment, role: Role) -> dict[str, Any]:
    """RDMA registers memory by pinning it, which needs the capability or an unlimited memlock limit of the container runtime."""
    capabilities: dict[str, Any] = {"drop": ["ALL"]}
    if deployment.kubernetes.rdma and role != "router":
        capabilities["add"] = ["IPC_LOCK"]
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": capabilities}


def probes(deployment: Deployment, role: Role) -> dict[str, Any]:
    """Startup: the process serves. Liveness: its event loop turns and its engine computes. Readiness: it may be given work. A
    worker that finds itself sick ends by itself; liveness is for one that hangs."""
    pool = pool_of(deployment, role)
    port = "http" if role == "router" else "metrics"
    scheme = "HTTPS" if role == "router" and deployment.config.router.tls else "HTTP"

    def get(path: str, **times: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": port, "scheme": scheme}, "timeoutSeconds": 5, **times}

    tries = math.ceil(pool.start_timeout_s / START_PERIOD_S)
    return {
        "startupProbe": get("/health", periodSeconds=START_PERIOD_S, failureThreshold=tries),
        "livenessProbe": get("/health", periodSeconds=10, failureThreshold=3),
        "readinessProbe": get("/ready", periodSeconds=2, failureThreshold=2),
    }


def lifecycle(deployment: Deployment, role: Role) -> dict[str, Any]:
    """SIGTERM is what drains a process. A router waits before that: whoever balances clients has not heard of its end yet."""
    wait_s = deployment.kubernetes.deregister_s
    if role != "router" or not wait_s:
        return {}
    return {"lifecycle": {"preStop": {"sleep": {"seconds": wait_s}}}}


def grace_s(deployment: Deployment, role: Role) -> int:
    """Seconds from a pod's deletion to SIGKILL: preStop, then the drain and the stop, which end by themselves before."""
    cluster = deployment.config.cluster
    wait_s = deployment.kubernetes.deregister_s if role == "router" else 0
    return wait_s + math.ceil(cluster.drain_timeout_s + cluster.stop_timeout_s) + 5
