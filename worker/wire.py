"""Engine results in the words of the wire."""

from collections.abc import Sequence as Many

from engine.sampler import TokenLogprobs
from protocol import serval_pb2


def logprobs_to_proto(logprobs: Many[TokenLogprobs]) -> list[serval_pb2.TokenLogprobs]:
    return [
        serval_pb2.TokenLogprobs(
            chosen=serval_pb2.TokenLogprob(token_id=one.token_id, logprob=one.logprob),
            top=[serval_pb2.TokenLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in one.top],
        )
        for one in logprobs
    ]
