"""What a sequence must be to be computed at all."""

from engine.kv_cache import KVCache
from engine.sequence import Sequence
from protocol.errors import InvalidRequest


def check_submission(sequence: Sequence, kv_cache: KVCache, max_model_len: int) -> None:
    """Raises InvalidRequest, which names the field, for one that never can."""
    if not sequence.tokens:
        raise InvalidRequest("the prompt is empty", "prompt")
    if len(sequence.prompt) >= max_model_len:
        raise InvalidRequest(
            f"the prompt has {len(sequence.prompt)} tokens, the context holds {max_model_len} with the answer", "prompt"
        )
    if sequence.num_computed and sequence.wants_prompt_logprobs:
        raise InvalidRequest("prompt_logprobs come of computing the whole prompt here", "prompt_logprobs")
    if sequence.num_remaining < 1 or len(sequence.blocks) < kv_cache.blocks_for(sequence.num_computed):
        raise InvalidRequest("a sequence must hold the blocks of its computed tokens and leave at least one to compute")
