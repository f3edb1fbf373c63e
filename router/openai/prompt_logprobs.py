"""A prompt's logprobs in vLLM's words: an extension of OpenAI's API."""

from typing import Any

from protocol.serval_pb2 import TokenLogprobs
from router.request import Request
from router.text.token_bytes import TokenBytes


def prompt_logprobs_of(request: Request, count: int, token_bytes: TokenBytes) -> list[dict[str, Any] | None]:
    """One entry per prompt token: it and the `count` likeliest in its place, by token id. The first, which nothing precedes, has
    none. The rank of a token that is none of the likeliest is not known."""
    entries: list[dict[str, Any] | None] = [_entry(each, count, token_bytes) for each in request.prompt_logprobs]
    return [None, *entries[1:]]


def _entry(logprobs: TokenLogprobs, count: int, token_bytes: TokenBytes) -> dict[str, Any]:
    ranks = {token.token_id: rank for rank, token in enumerate(logprobs.top, start=1)}
    return {
        str(token.token_id): {
            "logprob": token.logprob,
            "rank": ranks.get(token.token_id),
            "decoded_token": token_bytes.of(token.token_id)[0],
        }
        for token in (logprobs.chosen, *logprobs.top[:count])
    }
