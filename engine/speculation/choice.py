"""Whether an engine guesses, and who does."""

from engine.attention.base import AttentionBackend
from engine.config import EngineConfig
from engine.kv_pool import KVPool
from engine.models.base import Model
from engine.recent_steps import RecentSteps
from engine.speculation.drafter import Drafter
from engine.speculation.mtp import MtpDrafter
from engine.speculation.ngram import NgramDrafter
from engine.speculation.speculation import Speculation
from telemetry.metrics import Metrics


def make_speculation(
    config: EngineConfig,
    model: Model,
    pool: KVPool,
    attention: AttentionBackend,
    max_model_len: int,
    recent: RecentSteps,
    metrics: Metrics,
) -> Speculation | None:
    """None: nothing is guessed. `attention`: the model's, over `pool`; `recent`: what the engine's steps take."""
    drafter = _choose_drafter(config, model, pool, attention)
    if drafter is None:
        return None
    return Speculation(drafter, config.draft_tokens, model.config.eos_token_ids, max_model_len, recent, metrics)


def _choose_drafter(config: EngineConfig, model: Model, pool: KVPool, attention: AttentionBackend) -> Drafter | None:
    """A model has its head only where `config` wants it to draft (engine/models/registry.py)."""
    if model.draft_head is not None:
        return MtpDrafter(model.draft_head, pool, attention)
    return NgramDrafter() if config.speculation == "ngram" else None
