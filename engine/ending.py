"""When an answer is over, and how."""

from dataclasses import dataclass

from engine.sequence import FinishReason, Sequence
from protocol.errors import ServalError


@dataclass(frozen=True)
class Ending:
    """A sequence that is computed no further."""

    sequence: Sequence
    finish: FinishReason
    error: ServalError | None = None


def ending_of(sequence: Sequence, eos_token_ids: frozenset[int], max_model_len: int) -> Ending | None:
    """Whether the last token ended the answer; for a sequence with at least one answer token, and its matcher if it has a grammar.

    A fulfilled grammar ends it whatever `min_tokens` and `ignore_eos` say: nothing could follow.
    """
    params, last = sequence.params, sequence.output[-1]
    if sequence.matcher is not None:
        sequence.matcher.follow(sequence.output)
        if sequence.matcher.error is not None:
            return Ending(sequence, "error", sequence.matcher.error)
        if sequence.matcher.is_complete:
            return Ending(sequence, "stop")
    is_end = last in params.stop_token_ids or (not params.ignore_eos and last in eos_token_ids)
    if is_end and len(sequence.output) >= params.min_tokens:
        return Ending(sequence, "stop")
    if len(sequence.output) >= params.max_tokens or len(sequence.tokens) >= max_model_len:
        return Ending(sequence, "length")
    return None
