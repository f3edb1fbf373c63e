"""One streamed completion: what is counted, what is called an error and by which name."""

import asyncio
import time

import pytest
from benchmarks_support import PAUSE, Script, ScriptedServer, ending, event, serving, token, whole_answer

from benchmarks.completions import Answer, CompletionRequest, EventStream, complete

REQUEST = CompletionRequest("tiny", [1, 2, 3, 4], max_tokens=3)


async def ask(script: Script, status: str = "200 OK", timeout_s: float = 10.0) -> Answer:
    async with serving(ScriptedServer(lambda _: script, status=status)) as server:
        return await complete(server.url, REQUEST, timeout_s)


def test_events_are_cut_wherever_the_network_cut_them() -> None:
    text = b"data: one\r\n\r\n: a comment\n\ndata:two\n\ndata: three\n\n"
    for size in range(1, len(text) + 1):
        stream = EventStream()
        found = [data for at in range(0, len(text), size) for data in stream.feed(text[at : at + size])]
        assert found == [b"one", b"two", b"three"]


async def test_a_whole_answer() -> None:
    async with serving(ScriptedServer(lambda _: whole_answer(3))) as server:
        answer = await complete(server.url, REQUEST, 10.0)
    assert answer.error is None
    assert (answer.prompt_tokens, answer.completion_tokens, len(answer.event_s)) == (4, 3, 3)
    assert 0 < answer.time_to_first_token_s <= answer.end_to_end_s
    (body,) = server.bodies
    assert body["prompt"] == [1, 2, 3, 4]
    assert body["ignore_eos"] is True and body["temperature"] == 0 and body["stream_options"] == {"include_usage": True}


async def test_a_token_without_text_yet_counts_and_the_closing_event_does_not() -> None:
    answer = await ask([token(""), token(" a"), token(" b"), ending(3)])
    assert answer.error is None
    assert len(answer.event_s) == 3


async def test_latencies_count_from_when_the_request_was_due() -> None:
    async with serving(ScriptedServer(lambda _: whole_answer(3))) as server:
        answer = await complete(server.url, REQUEST, 10.0, due_s=time.perf_counter() - 5.0)
    assert answer.time_to_first_token_s > 5.0


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([token(" a"), token(" b")], "cut: the stream ended without its end"),
        ([token(" a"), event({"error": {"code": "unavailable", "type": "server_error"}})], "error event: unavailable"),
        ([token(" a"), event({"error": {"message": "?"}})], "error event: unnamed"),
        ([token(" a"), ending(1)], "length: not the number of tokens asked for"),
        ([ending(0)], "empty: no token came"),
        ([event("{")], "malformed event: JSONDecodeError"),
        ([event("[1]")], "malformed event: AttributeError"),
    ],
)
async def test_an_answer_that_is_not_whole_says_how(script: Script, kind: str) -> None:
    assert (await ask(script)).error == kind


async def test_a_refusal_is_named_by_status_and_code() -> None:
    body = b'{"error": {"code": "overloaded", "type": "rate_limit_error"}}'
    assert (await ask([body], status="429 Too Many Requests")).error == "HTTP 429: overloaded"
    assert (await ask([b"<html>"], status="502 Bad Gateway")).error == "HTTP 502: Bad Gateway"


async def test_nobody_there() -> None:
    assert (await complete("http://127.0.0.1:1", REQUEST, 10.0)).error == "connection: ConnectionRefusedError"


async def test_a_server_that_speaks_something_else() -> None:
    assert (await ask([], status="twohundred")).error == "connection: ProtocolError"


async def test_the_deadline_covers_the_whole_answer() -> None:
    assert (await ask([token(" a"), PAUSE], timeout_s=0.2)).error == "timeout"


async def test_cancellation_goes_on() -> None:
    async with serving(ScriptedServer(lambda _: [token(" a"), PAUSE])) as server:
        task = asyncio.create_task(complete(server.url, REQUEST, 10.0))
        await asyncio.wait_for(server.paused.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def answer_of(events: list[float], tokens: int) -> Answer:
    return Answer(due_s=0.0, wanted_tokens=tokens, event_s=events, ended_s=events[-1], completion_tokens=tokens)


def test_a_users_speed_leaves_out_the_first_event() -> None:
    assert answer_of([1.0, 1.1, 1.2, 1.3], 4).tokens_per_second == pytest.approx(10.0)
    assert answer_of([1.0, 1.2], 4).tokens_per_second == pytest.approx(10.0)  # two tokens per event
    assert answer_of([1.0], 1).tokens_per_second is None
