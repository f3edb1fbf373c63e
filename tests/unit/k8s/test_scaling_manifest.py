"""Where pools scale, a RayService says so to Serve and to the autoscaler of pods, with the same limits."""

from typing import Any

import yaml
from k8s_support import all_objects, of_kind
from ray.serve.schema import ServeDeploySchema

SCALING = {"prefill": {"min": 2, "max": 5}, "decode": {"max": 3}}


def service(**settings: Any) -> dict[str, Any]:
    (found,) = of_kind(all_objects(None, "rayservice", **settings), "RayService").values()
    spec: dict[str, Any] = found["spec"]
    return spec


def test_limits_and_policy() -> None:
    spec = service(scaling=SCALING)
    config = yaml.safe_load(spec["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.autoscaling_policy is not None
    assert application.autoscaling_policy["policy_function"] == "serving.ray_scaling:PoolPolicy"
    between = {
        one.name: (one.autoscaling_config["min_replicas"], one.autoscaling_config["max_replicas"])
        for one in application.deployments
    }
    assert between == {"Router": (2, 2), "PrefillWorker": (2, 5), "DecodeWorker": (1, 3)}
    groups = {one["groupName"]: one for one in spec["rayClusterConfig"]["workerGroupSpecs"]}
    pods = {name: tuple(group[key] for key in ("replicas", "minReplicas", "maxReplicas")) for name, group in groups.items()}
    assert pods == {"router": (2, 2, 2), "prefill": (2, 2, 5), "decode": (1, 1, 3)}


def test_pools_that_stay() -> None:
    config = yaml.safe_load(service()["serveConfigV2"])
    (application,) = config["applications"]
    assert "autoscaling_policy" not in application
    assert all("autoscaling_config" not in one and one["num_replicas"] for one in application["deployments"])
