"""A replica asks the other machines of its worker. The actors are stand-ins that answer as the test says."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")
from ray.exceptions import ActorUnavailableError, RayError

from protocol.errors import Unavailable
from serving import ray_followers
from serving.ray_followers import Hosts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(20)]

NAME = "decode-0-host-1"
REASON = "rank 4 ended with status 2"


class Actor:
    """Answers in turn, and keeps to the last answer; an exception is raised."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self._answers = list(answers)
        self.asked = 0
        self.why_not = SimpleNamespace(remote=self._answer)

    async def _answer(self) -> str | None:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Silent:
    """Still starts."""

    def __init__(self) -> None:
        self.why_not = SimpleNamespace(remote=asyncio.Event().wait)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_followers, "LOOK_PERIOD_S", 0.001)


async def start_for_ever(ended: asyncio.Event) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (REASON, f"^{NAME}: {REASON}$"),
        (RayError("a traceback\nConfigError: engine.local_followers"), f"^{NAME}: .* gone: ConfigError: engine.local_f"),
    ],
)
async def test_a_machine_that_is_lost_ends_the_start_with_its_name_and_reason(answer: Any, message: str) -> None:
    ended = asyncio.Event()
    hosts = Hosts({"decode-0-host-2": Silent(), NAME: Actor(None, ActorUnavailableError("a moment", None), answer)})
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match=message):
            await hosts.while_well(start_for_ever(ended))
        await ended.wait()
    with pytest.raises(Unavailable, match=message):
        hosts.check()
    hosts.close()


async def test_a_server_that_fails_by_itself_says_so() -> None:
    async def fail() -> None:
        raise Unavailable("rank 4: the model is not there")

    hosts = Hosts({NAME: Actor(REASON)})
    with pytest.raises(Unavailable, match="the model is not there"):
        await hosts.while_well(fail())
    hosts.close()


async def test_a_machine_lost_after_the_start_is_found_by_the_health_check() -> None:
    actor = Actor(None)
    hosts = Hosts({NAME: actor})
    assert await hosts.while_well(asyncio.sleep(0.01, "ready")) == "ready"
    hosts.check()
    actor._answers = [REASON]
    async with asyncio.timeout(10):
        await hosts._watches[0]
    with pytest.raises(Unavailable, match=REASON):
        hosts.check()


async def test_it_asks_until_it_is_closed_and_a_worker_on_one_machine_has_nothing_to_ask() -> None:
    actor = Actor(None)
    hosts = Hosts({NAME: actor})
    await asyncio.sleep(0)
    hosts.close()
    await asyncio.wait(hosts._watches, timeout=10)
    assert (actor.asked, hosts._watches[0].cancelled()) == (1, True)
    alone = Hosts({})
    assert await alone.while_well(asyncio.sleep(0, "ready")) == "ready"
    alone.check()
