"""One client call becomes its requests: each prompt `n` times."""

from dataclasses import dataclass, replace

from protocol.ids import RequestId
from protocol.outcomes import Outcome
from router.answers import Answers
from router.dispatch import Dispatcher
from router.request import GenerateSpec, Request
from router.tenants.caller import Caller
from router.tool_calls.plan import NO_TOOLS, ToolPlan
from telemetry.tracing import NO_CONTEXT, TraceContext

_SEEDS = 2**63


@dataclass(frozen=True)
class Call:
    """A validated call: `n` answers to each prompt, read by `tools`. Choices are numbered prompt by prompt, as in OpenAI's API."""

    prompts: tuple[GenerateSpec, ...]
    n: int = 1
    tools: ToolPlan = NO_TOOLS


def start(
    dispatcher: Dispatcher,
    call: Call,
    request_id: RequestId,
    caller: Caller,
    timeout_s: float | None = None,
    trace: TraceContext = NO_CONTEXT,
) -> Answers:
    """Has every request of the call accepted, or none: raises what was raised for one of them."""
    requests: list[Request] = []
    try:
        for spec in call.prompts:
            first: Request | None = None
            for copy in range(call.n):
                name = RequestId(f"{request_id}-{len(requests)}") if requests else request_id
                request = dispatcher.accept(name, _nth(spec, copy), caller, timeout_s, trace, sibling_of=first)
                first = first or request
                requests.append(request)
    except Exception:  # also a bug: nobody would read those that were accepted
        abandon(dispatcher, Answers(requests))
        raise
    return Answers(requests, dispatcher.turns)


def abandon(dispatcher: Dispatcher, answers: Answers, outcome: Outcome = Outcome.CANCELLED) -> None:
    """Nobody waits for the call any more. Does nothing to requests that have ended."""
    for request in answers.requests:
        dispatcher.abandon(request, outcome)


def _nth(spec: GenerateSpec, copy: int) -> GenerateSpec:
    """The answer number `copy` to the prompt. Its draws are its own, and the same in every call with this seed."""
    if copy == 0:
        return spec
    return replace(spec, sampling=replace(spec.sampling, seed=(spec.sampling.seed + copy) % _SEEDS))
