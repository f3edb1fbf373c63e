"""What a call's span says of it."""

from collections.abc import Mapping
from typing import Any

from protocol.outcomes import Outcome
from router.answers import Answers
from router.call_trace import CallTrace
from telemetry import span_names
from telemetry.tracing import NO_CONTEXT
from tests.unit.router.dispatch_world import World


class Recorded:
    """A span, and the tracing that makes it."""

    is_recording = True
    context = NO_CONTEXT

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.outcome: Outcome | None = None

    def start(self, *_: object) -> "Recorded":
        return self

    def set(self, attributes: Mapping[str, Any]) -> None:
        self.attributes |= attributes

    def end(self, outcome: Outcome, attributes: Mapping[str, Any]) -> None:
        self.outcome, self.attributes = outcome, self.attributes | attributes


async def test_a_cost_that_is_not_known_yet_is_left_out() -> None:
    world = World(cost={"prefill": {"gpu_hour_usd": 1.0}, "decode": {"gpu_hour_usd": 1.0}})
    world.join("decode", "d")
    spans = []
    for is_whole in (True, False):
        request, span = world.accept(), Recorded()
        if is_whole:
            world.say(world.task_of(request), 6, "length", decode_busy_s=1.8)
        else:
            world.say(world.task_of(request), 1, None)
            world.dispatcher.abandon(request)
        CallTrace(span, "chat", "m", NO_CONTEXT).finish(Answers([request]))  # type: ignore[arg-type]
        spans.append(span)
    whole, cancelled = spans
    assert (whole.outcome, whole.attributes[span_names.COST_USD] > 0) == (Outcome.LENGTH, True)
    assert cancelled.outcome is Outcome.CANCELLED and span_names.COST_USD not in cancelled.attributes
    assert cancelled.attributes[span_names.USAGE_OUTPUT_TOKENS] == 1
