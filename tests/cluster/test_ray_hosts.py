"""A worker on two machines under Ray Serve, here two places of one: placed together, replaced together."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.split.leader import KEY_VARIABLE
from engine.tiny import write_tiny_llama
from serving.config import load
from serving.own_ray import OBJECT_STORE_BYTES
from serving.ports import any_free_port
from serving.ray_app import RAY_ENVIRONMENT

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(300)]

HERE = "127.0.0.1"
START_S = 120.0
ROLE = {"decode": 1}


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray with room for the processes of two machines."""
    monkeypatch.setenv(KEY_VARIABLE, "a word")
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tempfile.mkdtemp(prefix="serval-ray-")
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            resources={"decode": 2},
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def follower() -> psutil.Process | None:
    """The only one, where there is one."""
    found = [one for one in psutil.process_iter(["cmdline"]) if "engine.split.follower" in (one.info["cmdline"] or [])]
    assert len(found) <= 1, found
    return found[0] if found else None


def until_served_by_another_than(before: psutil.Process | None) -> psutil.Process:
    from ray import serve

    deadline = time.monotonic() + START_S
    while True:
        (application,) = serve.status().applications.values()
        now = follower()
        if application.status == "RUNNING" and now is not None and now != before:
            return now
        assert time.monotonic() < deadline, application
        time.sleep(0.2)


def test_a_worker_is_placed_and_replaced_as_one(room: None, tmp_path: Path) -> None:
    from ray import serve

    from serving.ray_app import replica_settings
    from serving.ray_followers import Spread
    from serving.ray_replica import Replica

    settings = {"model": write_tiny_llama(tmp_path / "tiny"), "engine.tensor_parallel_size": 2, "engine.dtype": "float32"}
    settings |= {
        "engine.kv_memory_bytes": "4MiB",
        "engine.device": "cpu",
        "cluster.metrics_port": 0,
        "cluster.drain_timeout_s": 1,
    }
    config = load(None, settings)
    made = serve.deployment(Replica).options(
        name="DecodeWorker",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": ROLE},
        placement_group_bundles=[ROLE, ROLE],
        placement_group_strategy="PACK",
        **replica_settings(config.cluster),
    )
    # All on loopback, where no router listens: how a worker joins is shown elsewhere.
    serve.start(proxy_location="Disabled")
    serve.run(
        made.bind("decode", config.model_dump_json(), (), Spread(2, any_free_port(HERE))), name="serval", route_prefix=None
    )

    first = until_served_by_another_than(None)
    assert first.parent().name() == "ray::Host"  # an actor's of its own, not the replica's
    first.kill()
    second = until_served_by_another_than(first)
    assert second.parent().name() == "ray::Host"
    serve.shutdown()
    psutil.wait_procs([second], START_S)
    assert not second.is_running()
