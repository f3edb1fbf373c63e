"""A split model and the leader's KV pool: followers are started first, so that all read their shares at once."""

import logging
from pathlib import Path

from engine.config import EngineConfig
from engine.kv_pool import KVPool
from engine.loading import load_model
from engine.models.checkpoint import Progress
from engine.models.held import weight_bytes
from engine.models.longcat_config import LongcatConfig
from engine.models.registry import read_model_config
from engine.placement import choose_device, keeps_eight_bit
from engine.split.leader import Leader
from engine.split.model import SplitModel
from engine.split.share import Share

logger = logging.getLogger(__name__)


def load_split_model(folder: Path, config: EngineConfig, progress: Progress | None = None) -> tuple[SplitModel, KVPool, int]:
    """As engine/loading.py's. Raises SplitFailed too; then no follower is left."""
    device = choose_device(config)
    _check(folder, config, keeps_eight_bit(config, device))
    leader = Leader(folder, config, progress)
    try:
        ranks = leader.join(device)
        model, pool, max_model_len = load_model(folder, config, leader.report, ranks)
        leader.wait_ready()
    except BaseException:
        leader.close()
        raise
    return SplitModel(model, leader, ranks, pool.num_blocks, pool.block_size), pool, max_model_len


def _check(folder: Path, config: EngineConfig, keeps_eight_bit: bool) -> None:
    """Raises ConfigError for a split that is impossible, before anything is started."""
    shape = read_model_config(folder)
    eight_bit = keeps_eight_bit and isinstance(shape, LongcatConfig) and shape.weight_block is not None
    held = weight_bytes(shape, Share(0, config.tensor_parallel_size), eight_bit=eight_bit)
    logger.info("%d processes share the model: about %.2f GiB of weights each", config.tensor_parallel_size, held / (1 << 30))
