"""What one forward pass said about one sequence, and how the sequence takes it."""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from engine.batch import Span
from engine.ending import Ending
from engine.logprobs import TokenLogprobs
from engine.sequence import Sequence, SequenceUpdate


@dataclass(frozen=True)
class Answered:
    """The next tokens of one sequence: its guesses that hold, and one more."""

    span: Span
    tokens: SequenceOf[int]
    logprobs: SequenceOf[TokenLogprobs]
    """One per token where the request asked for them, else empty."""
    guesses: SequenceOf[int]
    """For what follows, of a drafter that makes them on the device."""


def take_tokens(answered: Answered, ending_of: Callable[[Sequence], Ending | None]) -> tuple[SequenceUpdate, Ending | None]:
    """Appends the tokens one by one, up to the first that ends the answer: what was drawn after it is cut, as if it never had been.

    Returns what there is to tell, and the ending if there is one.
    """
    sequence = answered.span.sequence
    prompt_logprobs = tuple(sequence.prompt_logprobs) if sequence.wants_prompt_logprobs else ()
    count, ending = 0, None
    for token_id in answered.tokens:
        sequence.append(token_id)
        count += 1
        if (ending := ending_of(sequence)) is not None:
            break
    sequence.num_computed = len(sequence.tokens) - 1
    if ending is not None and ending.error is not None:  # a token that leaves the grammar is nobody's
        count -= 1
    tokens, logprobs = tuple(answered.tokens[:count]), tuple(answered.logprobs[:count])
    update = SequenceUpdate(sequence.request_id, sequence, tokens, logprobs, prompt_logprobs if tokens else ())
    return (update if ending is None else replace(update, finish=ending.finish, error=ending.error)), ending
