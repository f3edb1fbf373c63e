"""Engine results in the words of the wire."""

from collections.abc import Iterable, Mapping

from engine.logprobs import TokenLogprobs
from engine.sequence import FinishReason
from protocol import serval_pb2
from protocol.outcomes import Outcome

OUTCOME_OF: Mapping[FinishReason, Outcome] = {"stop": Outcome.STOP, "length": Outcome.LENGTH}
"""How the engine's ordinary ends are called; its "error" brings its own outcome, and "aborted" has a reason elsewhere."""


def logprobs_to_proto(logprobs: Iterable[TokenLogprobs]) -> list[serval_pb2.TokenLogprobs]:
    return [_to_proto(one) for one in logprobs]


def _to_proto(one: TokenLogprobs) -> serval_pb2.TokenLogprobs:
    message = serval_pb2.TokenLogprobs(chosen=serval_pb2.TokenLogprob(token_id=one.token_id, logprob=one.logprob))
    add = message.top.add  # half the time of making the parts first; a long prompt has tens of thousands
    for token_id, logprob in one.top:
        add(token_id=token_id, logprob=logprob)
    return message
