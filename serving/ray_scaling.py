"""Ray Serve's autoscaling policy for the whole application: both pools become as large as the routers say.

Serve calls it in its controller, ten times a second, with what every replica has recorded (`record_autoscaling_stats`, pushed to
the controller each second with the time of recording). The decision itself is made once per period beside each router
(serving/pool_scaler.py), where everything is known that it needs; so nothing here waits, asks anybody or remembers.
"""

from collections.abc import Mapping
from typing import Any

STATS = {"prefill": "serval_desired_prefill", "decode": "serval_desired_decode"}
"""What a router's replica records, by pool."""


class PoolPolicy:
    """`pools`: the deployments' names, by pool. `stale_s`: what a router recorded longer ago counts no more."""

    def __init__(self, pools: Mapping[str, str], stale_s: float) -> None:
        self._pools = {deployment: pool for pool, deployment in pools.items()}
        self._stale_s = stale_s

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        """Of several routers the one that wants most is followed: each sees its own line. A pool that no router has spoken of
        lately stays as it is."""
        wanted: dict[str, int] = {}
        for context in contexts.values():
            for pool, stat in STATS.items():
                for series in (context.raw_metrics or {}).get(stat, {}).values():
                    if series and context.current_time - series[-1].timestamp <= self._stale_s:
                        wanted[pool] = max(wanted.get(pool, 0), round(series[-1].value))
        pool_of = {key: self._pools.get(context.deployment_name) for key, context in contexts.items()}
        return {key: wanted[pool] for key, pool in pool_of.items() if pool is not None and pool in wanted}, {}
