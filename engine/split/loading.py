"""A split model and the leader's KV pool: followers are started first, so that all read their shares at once."""

from pathlib import Path

from engine.config import EngineConfig
from engine.kv_pool import KVPool
from engine.loading import load_model
from engine.models.checkpoint import Progress
from engine.placement import choose_device
from engine.split.leader import Leader
from engine.split.model import SplitModel


def load_split_model(folder: Path, config: EngineConfig, progress: Progress | None = None) -> tuple[SplitModel, KVPool, int]:
    """As engine/loading.py's. Raises SplitFailed too; then no follower is left."""
    device = choose_device(config)
    leader = Leader(folder, config, progress)
    try:
        ranks = leader.join(device)
        model, pool, max_model_len = load_model(folder, config, leader.report, ranks)
        leader.wait_ready()
    except BaseException:
        leader.close()
        raise
    return SplitModel(model, leader, ranks, pool.num_blocks, pool.block_size), pool, max_model_len
