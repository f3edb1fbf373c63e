"""What a call took: token counts and figures of all its answers together."""

from dataclasses import dataclass

from router.answers import Answers
from router.request import Request


@dataclass(frozen=True)
class CallFigures:
    """A prompt counts once, however many answers were drawn to it; so do its cached tokens, which are the first answer's.

    `ttft_s`: the call's first token. `tokens_per_second`: the mean of its answers, each as its reader sees it. `cost_usd`: all of
    it. The workers are the first answer's, empty where it had none. Figures are whole once every answer has ended.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft_s: float
    tokens_per_second: float
    cost_usd: float
    prefill_worker: str
    decode_worker: str


def figures_of(answers: Answers, n: int) -> CallFigures:
    """`n`: answers to each prompt."""
    requests = answers.requests
    first_of_prompt = requests[::n]
    each = [request.figures for request in requests]
    speeds = [figures.tokens_per_second for figures in each if figures.tokens_per_second]
    return CallFigures(
        prompt_tokens=sum(len(request.spec.prompt) for request in first_of_prompt),
        completion_tokens=sum(answer_tokens(request) for request in requests),
        cached_tokens=sum(request.cached_tokens for request in first_of_prompt),
        ttft_s=min((figures.ttft_s for figures in each if figures.ttft_s), default=0.0),
        tokens_per_second=sum(speeds) / len(speeds) if speeds else 0.0,
        cost_usd=sum(figures.cost_usd for figures in each),
        prefill_worker=each[0].prefill_worker,
        decode_worker=each[0].decode_worker,
    )


def answer_tokens(request: Request) -> int:
    """Tokens of the answer that the client asked for."""
    return 0 if request.spec.is_prompt_only else len(request.output)
