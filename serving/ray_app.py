"""`serval up --ray`: the cluster as one Ray Serve application on a Ray of its own on this machine."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from planner.scaling_config import PoolLimits, ScalingConfig
from protocol.errors import ConfigError
from serving.announce import announcement
from serving.child import environment
from serving.config import ClusterConfig, ServalConfig
from serving.display import Display
from serving.front import front_url, trust_own
from serving.launcher import ClusterFailed
from serving.membership import describe_workers, wait_until_there_are
from serving.own_ray import explained, own_ray, within
from serving.ports import ROUTER_PORTS, any_free_port, require_free
from serving.roles import Role, members
from serving.status import Ready

RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
"""Read once, when ray is imported and when its processes start."""

APPLICATION = "serval"
DEPLOYMENTS: dict[Role, str] = {"router": "Router", "prefill": "PrefillWorker", "decode": "DecodeWorker"}
"""What Serve calls the processes of each role."""

STATUS_PERIOD_S = 0.5
HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 10.0
"""Longer than the loop of a busy worker is ever late; a dead process is noticed at once by its death."""

PUSH_PERIOD_S = 1.0
"""Between two of a replica's messages to Serve's controller."""
STALE_PUSHES = 10
"""A router that has been silent for so many is not followed any more."""

EXIT_INTERRUPTED = 130


def run(config: ServalConfig, display: Display) -> int:
    """Runs until Ctrl-C, which drains; the second kills. The exit status. Raises ClusterFailed and ConfigError."""
    os.environ.update(RAY_ENVIRONMENT | environment(config))
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"cluster.ray: needs the extra `ray` ({error}): pip install -e '.[ray]'") from error
    started = time.monotonic()
    config = settle_ports(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    display.reporter("ray")("starting Ray", 0, 1)
    with own_ray(), _interruptible():
        return _serve(config, display, started)


def settle_ports(config: ServalConfig) -> ServalConfig:
    """The router's ports made definite, so that replicas need no directory to find it. Workers take any free metrics port: a
    replica may be replaced while the one before it still lives."""
    router = config.router
    for field in ROUTER_PORTS:
        require_free(router.host, getattr(router, field), f"router.{field}")
    ports = {field: getattr(router, field) or any_free_port(router.host) for field in ROUTER_PORTS}
    cluster = config.cluster.model_copy(update={"metrics_port": 0})
    return config.model_copy(update={"router": router.model_copy(update=ports), "cluster": cluster})


def build_application(
    config: ServalConfig, routers: Sequence[str] = (), hosts: Mapping[Role, int] | None = None, split_port: int = 0
) -> Any:
    """The Serve application: Router, PrefillWorker and DecodeWorker deployments in one, so that one policy can scale both pools
    together. `routers`: where workers find them on a cluster of machines, each of which holds one process; none: this machine
    holds all. `hosts`: machines of one worker, by role, where it is several; `split_port`: where its first waits for the others."""
    from ray import serve

    from serving.ray_followers import Spread
    from serving.ray_replica import Replica

    cluster = config.cluster
    # The threads that a worker computes with are its own setting; Ray would refuse to put three workers on two cores.
    settings = replica_settings(cluster) | {"max_constructor_retry_count": 1}
    text = config.model_dump_json()

    def deployment(role: Role, replicas: int, *parts: Any) -> Any:
        # On a cluster of machines each process finds the environment of its own role there.
        actor = {"num_cpus": 0} | ({} if routers else own_environment(config, role))
        made = serve.deployment(Replica).options(
            name=DEPLOYMENTS[role], ray_actor_options=actor, **settings, **replica_count(config.scaling, role, replicas)
        )
        return made.bind(role, text, tuple(routers), Spread((hosts or {}).get(role, 1), split_port), *parts)

    prefill, decode = deployment("prefill", cluster.prefill), deployment("decode", cluster.decode)
    return deployment("router", 1, prefill, decode)


def own_environment(config: ServalConfig, role: Role) -> dict[str, Any]:
    """What a process of `role` must find in its environment other than Ray was started with. A replica for which there is none can
    be one of the processes that Ray keeps ready."""
    own = dict(environment(config, role).items() - environment(config).items())
    return {"runtime_env": {"env_vars": own}} if own else {}


def replica_count(scaling: ScalingConfig | None, role: Role, replicas: int) -> dict[str, Any]:
    """How many replicas a deployment has, in the words of Serve's config file: so many, or between two limits. A router stays as
    it is; what it records reaches the policy because Serve is told that it scales."""
    if scaling is None:
        return {"num_replicas": replicas}
    limits = {"prefill": scaling.prefill, "decode": scaling.decode}.get(role, PoolLimits(min=replicas, max=replicas))
    between = {"min_replicas": limits.min, "max_replicas": limits.max, "initial_replicas": limits.clamp(replicas)}
    # Whether to wait was decided already.
    at_once = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    return {
        "autoscaling_config": between | at_once | {"metrics_interval_s": PUSH_PERIOD_S, "look_back_period_s": 2 * PUSH_PERIOD_S}
    }


def scaling_policy(scaling: ScalingConfig | None) -> dict[str, Any]:
    """The application's part in Serve's config file."""
    if scaling is None:
        return {}
    pools = {pool: DEPLOYMENTS[pool] for pool in ("prefill", "decode")}
    arguments = {"pools": pools, "stale_s": STALE_PUSHES * PUSH_PERIOD_S}
    return {"autoscaling_policy": {"policy_function": "serving.ray_scaling:PoolPolicy", "policy_kwargs": arguments}}


def replica_settings(cluster: ClusterConfig) -> dict[str, Any]:
    """How Serve looks after each process, in the words of its config file."""
    return {
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": cluster.drain_timeout_s + cluster.stop_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.1,
    }


def _serve(config: ServalConfig, display: Display, started: float) -> int:
    from ray import serve

    try:
        deadline = started + config.cluster.start_timeout_s
        left_s = max(1.0, deadline - time.monotonic())
        within(left_s, "cluster.start_timeout_s", "Ray Serve did not start", lambda: _deploy(config))
        _wait_running(config, display, deadline)
        ready = _wait_joined(config, deadline)
        display.finish("ray")
        display.stop_bars()
        print(announcement(config, ready, time.monotonic() - started), flush=True)
        _watch(display)
    except KeyboardInterrupt:
        return _stop(config, display)
    except BaseException:
        with contextlib.suppress(KeyboardInterrupt, Exception):  # what went wrong first is what is told
            within(config.cluster.stop_timeout_s, "cluster.stop_timeout_s", "Ray Serve did not stop", serve.shutdown)
        raise
    return 0


def _deploy(config: ServalConfig) -> None:
    """By a config, as on Kubernetes: Serve takes a policy for several deployments only from one. What `serve run FILE` does."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    application = {
        "name": APPLICATION,
        "import_path": "serving.ray_cluster:local_application",
        "route_prefix": None,
        "args": {"config": config.model_dump_json()},
        **scaling_policy(config.scaling),
    }
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    client = _get_global_client()
    assert client is not None, "Serve has started"
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))


def _stop(config: ServalConfig, display: Display) -> int:
    """The router first, so that every open answer has both its workers to the end."""
    from ray import serve

    display.line("draining; Ctrl-C again kills")
    try:
        # Whatever is wrong with a router that cannot drain, the rest must stop all the same.
        with contextlib.suppress(Exception):
            drained = serve.get_app_handle(APPLICATION).drain.remote()
            drained.result(timeout_s=config.cluster.drain_timeout_s + 1.0)
        with explained("Ray Serve did not stop"):
            serve.shutdown()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _wait_running(config: ServalConfig, display: Display, deadline: float) -> None:
    report = display.reporter("ray")
    total = len(members(config))
    while True:
        status = _status()
        running = sum(one.replica_states.get("RUNNING", 0) for one in status.deployments.values())
        report("starting replicas", running, total)
        if status.status == "RUNNING":
            return
        if status.status == "DEPLOY_FAILED":
            raise ClusterFailed(_why(status))
        if time.monotonic() > deadline:
            raise ClusterFailed(f"not every replica started in time (cluster.start_timeout_s): {_why(status)}")
        time.sleep(STATUS_PERIOD_S)


def _wait_joined(config: ServalConfig, deadline: float) -> dict[str, Ready]:
    http = f"{config.router.host}:{config.router.http_port}"
    url, trust = front_url(config, http), trust_own(config)

    async def wait() -> list[dict[str, Any]]:
        async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
            while True:
                await wait_until_there_are(url, {"prefill": config.cluster.prefill, "decode": config.cluster.decode}, trust)
                with contextlib.suppress(httpx.HTTPError):  # a router that is too busy to answer this once
                    return await describe_workers(url, trust)

    try:
        workers = asyncio.run(wait())
    except TimeoutError as error:
        raise ClusterFailed("not every worker joined the router in time (cluster.start_timeout_s)") from error
    host = config.router.host
    link = f"{host}:{config.router.link_port}"
    router = Ready(grpc=f"{host}:{config.router.grpc_port}", metrics=http, http=http, link=link)
    return {"router": router} | {one["name"]: Ready(one["address"], one["metrics_address"]) for one in workers}


def _watch(display: Display) -> None:
    """Until Ctrl-C. Serve restarts what dies; here it is only said."""
    before = ""
    while True:
        status = _status()
        if status.status != before and before:
            display.line(f"ray: {status.status}" + ("" if status.status == "RUNNING" else f": {_why(status)}"))
        before = status.status
        time.sleep(STATUS_PERIOD_S)


def _status() -> Any:
    from ray import serve

    try:
        return serve.status().applications[APPLICATION]
    except KeyError as error:
        raise ClusterFailed("the Serve application is gone") from error
    except Exception as error:  # Ray's own processes ended; it has no common base for what it raises then
        raise ClusterFailed(f"Ray does not answer: {error}") from error


def _why(status: Any) -> str:
    """The last line of the most telling message: Serve's messages end in a traceback, and that in the error."""
    messages = [one.message for one in status.deployments.values() if one.message] or [status.message]
    lines = [line.strip() for line in max(messages, key=len).splitlines() if line.strip()]
    return lines[-1] if lines else str(status.status)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C. Ray would exit on it at once."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
