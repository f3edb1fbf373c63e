"""What a leader tells of a forward pass, and the same batch made of it by a follower. No state: each message says all of it."""

from engine.batch import Batch, Span
from engine.sequence import Sequence
from engine.split.channel import Message
from protocol.sampling import SamplingParams

PARAMS = SamplingParams()
"""A follower draws nothing."""
UNKNOWN = 0
"""Stands for tokens that no part of the step looks at."""


def spans_message(batch: Batch, history: int) -> list[Message]:
    """`history`: tokens before a token that its embedding hangs on."""
    sampled = set(batch.sampled_spans)
    return [_span_message(span, span in sampled, batch.block_size, history) for span in batch.spans]


def read_spans(messages: list[Message]) -> list[Span]:
    """Of sequences that are there for this step alone."""
    return [_read_span(message) for message in messages]


def _span_message(span: Span, samples: bool, block_size: int, history: int) -> Message:
    """By positions alone: a step that was launched ahead may be told of when its sequence has grown by tokens of others."""
    sequence = span.sequence
    # Where nothing is drawn one token more is known: what follows is the draft head's input.
    known_end = span.known_end - span.unread if samples else span.known_end + 1
    first = max(0, min(span.start - history, known_end))
    return {
        "start": span.start,
        "end": span.end,
        "drafts": span.drafts,
        "unread": span.unread,
        "first": first,
        "tokens": sequence.tokens[first:known_end],
        "blocks": sequence.blocks[: -(-span.end // block_size)],
        "is_contiguous": sequence.is_contiguous,
    }


def _read_span(message: Message) -> Span:
    sequence = Sequence("", [UNKNOWN] * message["first"] + message["tokens"], PARAMS)
    sequence.blocks, sequence.is_contiguous = message["blocks"], message["is_contiguous"]
    return Span(sequence, message["start"], message["end"], tuple(message["drafts"]), message["unread"])
