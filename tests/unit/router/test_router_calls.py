"""A call is accepted whole or not at all."""

import pytest

from protocol.ids import RequestId
from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from router import calls
from router.calls import Call
from router.request import GenerateSpec, Request
from router.tenants.caller import ANONYMOUS
from tests.unit.router.dispatch_world import PROMPT, World


async def test_a_bug_at_one_answer_leaves_no_other_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.join("decode", "d")
    spec, accept = GenerateSpec(PROMPT, SamplingParams()), world.dispatcher.accept
    accepted: list[Request] = []

    def explode_second(*args: object, **kwargs: object) -> object:
        if accepted:
            raise ValueError("a bug")
        accepted.append(accept(*args, **kwargs))  # type: ignore[arg-type]
        return accepted[-1]

    monkeypatch.setattr(world.dispatcher, "accept", explode_second)
    with pytest.raises(ValueError, match="a bug"):
        calls.start(world.dispatcher, Call((spec,), n=2), RequestId("r"), ANONYMOUS)
    assert world.dispatcher.open_requests == 0
    assert accepted[0].end is not None
    assert accepted[0].end.outcome is Outcome.CANCELLED
