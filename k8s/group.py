"""A worker on several hosts, in the plain flavour: a LeaderWorkerSet makes, moves and replaces its pods together.

Its first pod is the worker, like any other; the others hold the rest of the processes that share its model (serving/followers.py)
and find it by the name that the LeaderWorkerSet gives it. Who ends takes the others along: a process that loses one that it
computes with ends by itself, and a pod of the group that starts again, or is asked to end, makes the LeaderWorkerSet ask the leader
to end, which drains. Followers hold out until it has.
"""

from typing import Any

from k8s.container import container, grace_s, identity, pool_of, port_numbers, split
from k8s.deployment import Deployment
from k8s.objects import Manifest, manifest
from k8s.pod import metadata, spec, template
from serving.roles import Role

API = "leaderworkerset.x-k8s.io/v1"
COMMAND = ["python", "-m", "serving.followers"]
PROBED = "health"
LAST_S = 15
"""Seconds that a follower's pod may outlast its leader's: it hears of that one's end by their connection."""


def leader_worker_set(deployment: Deployment, role: Role, rolling: dict[str, Any]) -> Manifest:
    content = {
        "replicas": pool_of(deployment, role).replicas,
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": rolling},
        "startupPolicy": "LeaderCreated",  # it becomes ready when all that follow it are there
        "networkConfig": {"subdomainPolicy": "Shared"},
        "leaderWorkerTemplate": {
            "size": deployment.hosts_of(role),
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": template(deployment, role),
            "workerTemplate": followers(deployment, role),
        },
    }
    return manifest(deployment, API, "LeaderWorkerSet", role, role, spec=content)


def followers(deployment: Deployment, role: Role) -> dict[str, Any]:
    """A pod that follows: as its leader's, but for the program."""
    leader = f"$(LWS_LEADER_ADDRESS):{deployment.kubernetes.network.split_port}"
    own = [word for word in split(deployment, role) if "local_followers" in word]
    main = container(deployment, role) | {
        "command": COMMAND,
        "args": [*identity(role), *own, f"--leader={leader}", "--host=$(LWS_WORKER_INDEX)"],
        # Not called what Prometheus looks for: figures are the leader's.
        "ports": [{"name": PROBED, "containerPort": port_numbers(deployment, role)["metrics"], "protocol": "TCP"}],
    }
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        main[probe] = main[probe] | {"httpGet": main[probe]["httpGet"] | {"port": PROBED}}
    pod = spec(deployment, role, main) | {"terminationGracePeriodSeconds": grace_s(deployment, role) + LAST_S}
    return {"metadata": metadata(deployment, role), "spec": pod}
