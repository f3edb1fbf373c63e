"""What goes wrong: every accepted request ends in exactly one outcome, never in a cut answer and never in a hang."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import pytest

from protocol import cluster_pb2
from router.call_trace import CallTrace
from router.workers import Worker
from tests.integration.router_support import (
    CONTEXT,
    MODEL,
    WAIT_S,
    Cluster,
    byte_level_tokenizer,
    cluster,
    positional_answer,
    write_model_folder,
)

TEXT = "the stop and the wörld 😀 go on "
MESSAGES: Any = [{"role": "user", "content": "hi"}]
BODY = {"model": MODEL, "messages": MESSAGES, "max_tokens": 40}
STREAM = {**BODY, "stream": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path)


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Cluster]:
    async with cluster(folder) as one:
        yield one


async def post(running: Cluster, body: dict[str, Any]) -> Any:
    return await running.http.post("/v1/chat/completions", json=body)


class RawClient:
    """One kept-alive connection: a thousand requests in a second, where httpx takes ten."""

    def __init__(self, running: Cluster) -> None:
        self._port = running.ports.http

    async def __aenter__(self) -> "RawClient":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        self._writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), WAIT_S)).lower()
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), await asyncio.wait_for(self._reader.readexactly(size), WAIT_S)


def text_of(events: str) -> str:
    """The answer in a stream's events."""
    contents = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for c in contents for choice in c.get("choices", []))


async def whole_answer(running: Cluster) -> str:
    async with running.worker(name="reference", answer=positional_answer(TEXT)):
        return str((await post(running, BODY)).json()["choices"][0]["message"]["content"])


# ---- workers that are lost


@pytest.mark.parametrize("tokens_before", [0, 1, 17])
async def test_an_answer_goes_on_at_another_worker_without_a_gap(running: Cluster, tokens_before: int) -> None:
    answer = await whole_answer(running)
    async with running.worker(name="decode-0", answer=positional_answer(TEXT), hold_after=tokens_before) as first:
        asking = asyncio.create_task(post(running, STREAM))
        submit = await first.next_submit()
        async with running.worker(name="decode-1", answer=positional_answer(TEXT)) as second:
            await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 40 + tokens_before)
            await first.kill()
            response = await asking
            assert text_of(response.text) == answer
            assert response.text.endswith("data: [DONE]\n\n")
            again = second.submits[0]
            assert list(again.prompt[: len(submit.prompt)]) == list(submit.prompt)
            assert len(again.prompt) == len(submit.prompt) + tokens_before
            assert (again.output_tokens, again.sampling.max_tokens) == (tokens_before, 40)
            assert again.sampling.seed == submit.sampling.seed
    assert running.outcomes() == {"length": 2}
    assert running.metrics.value("serval_worker_losses_total", pool="decode") >= 1


async def test_a_second_loss_ends_the_request_in_an_error_event(running: Cluster) -> None:
    async with (
        running.worker(name="decode-0", answer=positional_answer(TEXT), hold_after=3) as first,
        running.worker(name="decode-1", answer=positional_answer(TEXT), hold_after=3) as second,
    ):
        asking = asyncio.create_task(post(running, STREAM))
        await running.until(lambda: bool(first.submits or second.submits))
        one, other = (first, second) if first.submits else (second, first)
        await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 3)
        await one.kill()
        await other.next_submit()
        await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 6)
        await other.kill()
        response = await asking
    last = response.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert "[DONE]" not in response.text
    assert running.outcomes() == {"unavailable": 1}


async def test_the_openai_client_raises_for_a_stream_that_fails(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as only:
        stream = await running.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        received = [await anext(stream) for _ in range(4)]
        await only.kill()
        with pytest.raises(openai.APIError, match="gone"):
            received += [chunk async for chunk in stream]
    assert running.outcomes() == {"unavailable": 1}


async def test_without_another_worker_an_unbegun_request_gets_a_true_503(running: Cluster) -> None:
    only = await running.worker().start()
    asking = asyncio.create_task(post(running, STREAM))
    await only.next_submit()
    await only.kill()
    response = await asking
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"


async def test_an_answer_with_penalties_goes_on_with_them_and_what_they_count(running: Cluster) -> None:
    async with running.worker(name="decode-0", answer=positional_answer(TEXT), hold_after=3) as first:
        asking = asyncio.create_task(post(running, {**STREAM, "presence_penalty": 1.0, "min_tokens": 20}))
        await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 3)
        async with running.worker(name="decode-1", answer=positional_answer(TEXT)) as second:
            await first.kill()
            assert (await asking).text.endswith("data: [DONE]\n\n")
            again = second.submits[0]
            assert (again.output_tokens, again.sampling.min_tokens, again.sampling.presence_penalty) == (3, 20, 1.0)


async def test_a_restarted_worker_takes_its_place_at_once(running: Cluster) -> None:
    old = await running.worker(name="decode-0", answer=positional_answer(TEXT), hold_after=2).start()
    asking = asyncio.create_task(post(running, STREAM))
    await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 2)
    async with running.worker(name="decode-0", answer=positional_answer(TEXT)) as new:
        response = await asking
        assert response.text.endswith("data: [DONE]\n\n")
        assert len(new.submits) == 1
        await old.wait_closed()
        assert "took its place" in old.details
        assert running.metrics.value("serval_workers", pool="decode") == 1
    await old.kill()


async def test_a_bug_at_a_worker_s_message_is_logged_and_its_requests_go_on_elsewhere(
    running: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    internals = running.router._running
    assert internals is not None
    dispatcher = internals._dispatcher
    on_step = dispatcher.on_step

    def broken(worker: Worker, step: cluster_pb2.StepOutput) -> None:
        if worker.name == "first":
            raise ZeroDivisionError("a bug")
        on_step(worker, step)

    monkeypatch.setattr(dispatcher, "on_step", broken)
    async with running.worker(name="first", answer=positional_answer(TEXT)) as first:
        asking = asyncio.create_task(post(running, BODY))
        await first.next_submit()
        async with running.worker(name="second", answer=positional_answer(TEXT)):
            assert (await asking).status_code == 200
    assert "decode first left: the router failed to handle what it said" in caplog.text
    (logged,) = [record for record in caplog.records if record.name == "router.link" and record.exc_info]
    assert "decode first: its message of kind step" in logged.message


async def test_a_silent_worker_is_given_up(folder: Path) -> None:
    async with cluster(folder, worker_silence_s=0.4) as running:
        silent = await running.worker(heartbeat_s=60).start()
        await silent.wait_closed()
        assert "silent" in silent.details
        assert running.metrics.value("serval_workers", pool="decode") == 0
        await silent.kill()


async def test_a_worker_whose_engine_stands_still_is_given_up(folder: Path) -> None:
    async with cluster(folder, worker_stall_s=0.4) as running:
        stuck = running.worker()
        stuck.load.running = 1
        await stuck.start()
        await stuck.wait_closed()
        assert "no step" in stuck.details
        await stuck.kill()


@pytest.mark.parametrize(("change", "says"), [({"fingerprint": "layout-2"}, "layout-2"), ({"model": "other"}, "other")])
@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_a_worker_that_does_not_fit_is_refused(running: Cluster, role: str, change: dict[str, Any], says: str) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        other = running.worker(role, name="other", **change)
        with pytest.raises(grpc.aio.AioRpcError, match=says) as refused:
            await other.start()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await other.kill()
        assert (await post(running, BODY)).status_code == 200


async def test_a_draining_worker_finishes_and_gets_nothing_new(running: Cluster) -> None:
    async with running.worker(name="decode-0") as leaving:
        asking = asyncio.create_task(post(running, BODY))
        submit = await leaving.next_submit()
        leaving.say_draining()
        async with running.worker(name="decode-1", answer=positional_answer(TEXT)) as staying:
            members = running.router.members
            assert members is not None
            await running.until(lambda: any(worker.is_draining for worker in members.all))
            assert (await post(running, BODY)).headers["x-serval-decode-worker"] == "decode-1"
            leaving.say_tokens(submit.request, [5])
            leaving.say_ended(submit.request, "length")
            assert (await asking).headers["x-serval-decode-worker"] == "decode-0"
            assert len(staying.submits) == 1
    await running.until(lambda: not list(members.all))
    assert running.metrics.value("serval_worker_losses_total", pool="decode") == 1, "only decode-1 left without a drain"


# ---- workers that give a request back


@pytest.mark.parametrize(
    ("outcome", "status"), [("overloaded", 503), ("unavailable", 503), ("internal", 500), ("invalid", 400)]
)
async def test_a_worker_s_no_is_the_client_s_status(folder: Path, outcome: str, status: int) -> None:
    async with cluster(folder, max_retries=0) as running, running.worker() as only:
        asking = asyncio.create_task(post(running, STREAM))
        only.say_ended((await only.next_submit()).request, outcome, "says why")
        response = await asking
        assert (response.status_code, response.json()["error"]["message"]) == (status, "says why")
        assert running.outcomes() == {outcome: 1}


async def test_an_overloaded_worker_s_request_goes_to_another(running: Cluster) -> None:
    async with running.worker(name="full") as full:
        asking = asyncio.create_task(post(running, BODY))
        submit = await full.next_submit()
        async with running.worker(name="free", answer=positional_answer(TEXT)):
            full.say_ended(submit.request, "overloaded")
            assert (await asking).headers["x-serval-decode-worker"] == "free"
    assert running.outcomes() == {"length": 1}


async def test_a_failed_prefill_worker_is_not_asked_again(running: Cluster) -> None:
    async with running.worker("prefill"), running.worker() as decode:
        asking = asyncio.create_task(post(running, BODY))
        submit = await decode.next_submit()
        assert submit.prefill.name == "prefill-0"
        decode.say_ended(submit.request, "prefill_failed")
        again = await decode.next_submit()
        assert not again.HasField("prefill")
        decode.say_tokens(again.request, [7])
        decode.say_ended(again.request, "length")
        assert (await asking).status_code == 200


async def test_an_outcome_that_is_no_word_of_ours_is_an_internal_error(running: Cluster) -> None:
    async with running.worker() as only:
        asking = asyncio.create_task(post(running, BODY))
        only.say_ended((await only.next_submit()).request, "gibberish")
        assert (await asking).status_code == 500
        assert running.outcomes() == {"internal": 1}


# ---- no workers, too much work


async def test_without_decode_workers_503_after_a_short_wait(running: Cluster) -> None:
    async with running.worker("prefill"):
        response = await post(running, BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert running.outcomes() == {"unavailable": 1}


async def test_a_worker_that_comes_in_time_gets_the_waiting_request(folder: Path) -> None:
    async with cluster(folder, worker_wait_s=WAIT_S) as running:
        asking = asyncio.create_task(post(running, BODY))
        await running.until(lambda: running.metrics.value("serval_num_requests_waiting") == 1)
        async with running.worker(answer=positional_answer(TEXT)):
            assert (await asking).status_code == 200


async def test_without_prefill_workers_decode_prefills_by_itself(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)) as only:
        assert (await post(running, BODY)).status_code == 200
        assert not only.submits[0].HasField("prefill")


async def test_more_than_may_wait_is_refused_with_503(folder: Path) -> None:
    async with cluster(folder, max_waiting=2) as running, running.worker() as only:
        asking = [asyncio.create_task(post(running, BODY)) for _ in range(2)]
        submits = [await only.next_submit() for _ in asking]
        refused = await post(running, BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert "retry-after" in refused.headers
        for submit in submits:
            only.say_tokens(submit.request, [5])
            only.say_ended(submit.request, "length")
        assert [(await each).status_code for each in asking] == [200, 200]
        assert running.metrics.value("serval_rejections_total", reason="overloaded") == 1
        assert running.outcomes() == {"length": 2}


# ---- clients that leave, deadlines


async def test_a_client_that_leaves_cancels_at_the_worker(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as only:
        stream = await running.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        await anext(stream)
        submit = await only.next_submit()
        await stream.close()
        assert await only.next_cancel() == submit.request
    assert running.outcomes() == {"cancelled": 1}


async def test_a_client_that_leaves_before_the_first_token_cancels_too(running: Cluster) -> None:
    async with running.worker() as only:
        for body in (BODY, STREAM):
            asking = asyncio.create_task(post(running, body))
            submit = await only.next_submit()
            asking.cancel()
            assert await only.next_cancel() == submit.request
    assert running.outcomes() == {"cancelled": 2}


async def test_late_tokens_of_a_cancelled_request_change_nothing(running: Cluster) -> None:
    async with running.worker() as only:
        asking = asyncio.create_task(post(running, BODY))
        submit = await only.next_submit()
        asking.cancel()
        await only.next_cancel()
        only.say_tokens(submit.request, [1, 2, 3])
        only.say_ended(submit.request, "stop")
        after = asyncio.create_task(post(running, BODY))
        second = await only.next_submit()
        only.say_tokens(second.request, [5])
        only.say_ended(second.request, "length")
        assert (await after).status_code == 200
    assert running.outcomes() == {"cancelled": 1, "length": 1}
    assert running.metrics.value("serval_generation_tokens_total") == 1


async def test_the_deadline_ends_a_request_before_and_after_its_first_token(folder: Path) -> None:
    async with cluster(folder, request_timeout_s=0.3) as running:
        async with running.worker() as mute:
            response = await post(running, STREAM)
            assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline")
            assert 0 < mute.submits[0].timeout_s <= 0.3
            await mute.next_cancel()
        async with running.worker(answer=positional_answer(TEXT), hold_after=3):
            response = await post(running, STREAM)
            assert response.status_code == 200
            assert json.loads(response.text.strip().splitlines()[-1][6:])["error"]["code"] == "deadline"
        assert running.outcomes() == {"deadline": 2}


async def test_a_client_that_reads_nothing_holds_up_nobody_and_is_dropped(folder: Path) -> None:
    async with (
        cluster(folder, client_stall_s=1.0, max_model_len=100_000) as running,
        running.worker(answer=positional_answer("x"), max_model_len=100_000, kv_blocks=10_000) as only,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", running.ports.http, limit=1024)
        body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 50_000, "stream": True, "logprobs": 20}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        await only.next_submit()
        assert (await post(running, BODY)).status_code == 200
        internals = running.router._running
        assert internals is not None
        server = internals._http._server
        assert server is not None
        await running.until(lambda: not server.server_state.tasks)
        assert running.outcomes() in ({"length": 2}, {"length": 1, "cancelled": 1})
        writer.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_bug_before_a_reply_begins_leaves_nothing_running(
    running: Cluster, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(CallTrace, "describe", broken)
    async with running.worker() as only:
        assert (await post(running, {**BODY, "stream": stream, "n": 2})).status_code == 500
        assert await only.next_cancel() == (await only.next_submit()).request
    assert running.outcomes() == {"internal": 2}


# ---- stopping


async def test_drain_refuses_new_requests_and_waits_for_the_open_ones(running: Cluster) -> None:
    async with running.worker() as only, running.worker("prefill"):
        asking = asyncio.create_task(post(running, BODY))
        submit = await only.next_submit()
        assert (await running.http.get("/ready")).status_code == 200
        draining = asyncio.create_task(running.router.drain())
        await asyncio.sleep(0)
        assert (await running.http.get("/ready")).status_code == 503
        assert (await post(running, BODY)).status_code == 503
        assert not draining.done()
        only.say_tokens(submit.request, [5])
        only.say_ended(submit.request, "length")
        assert (await asking).status_code == 200
        await asyncio.wait_for(draining, WAIT_S)


async def test_who_waits_in_the_line_of_a_draining_router_is_answered_also_by_a_worker_that_comes_back(folder: Path) -> None:
    async with cluster(folder, decode_overcommit=0, worker_wait_s=WAIT_S, worker_return_s=WAIT_S) as running:
        async with running.worker(max_sequences=1) as first:
            asking = [asyncio.create_task(post(running, BODY)) for _ in range(3)]
            submit = await first.next_submit()
            await running.until(lambda: running.metrics.value("serval_queue_length") == 2)
            draining = asyncio.create_task(running.router.drain())
            await asyncio.sleep(0)
            assert (await post(running, BODY)).status_code == 503, "it drains"
            first.say_tokens(submit.request, [5])
            first.say_ended(submit.request, "length")
            await first.next_submit()  # the next in line has its place now, and loses it again
        await running.until(lambda: running.metrics.value("serval_workers", pool="decode") == 0)
        async with running.worker(answer=positional_answer(TEXT), max_sequences=1):
            assert [(await each).status_code for each in asking] == [200] * 3
            await asyncio.wait_for(draining, WAIT_S)


async def test_stop_ends_what_is_left_in_an_error_event(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as only:
        asking = asyncio.create_task(post(running, STREAM))
        await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 3)
        await asyncio.wait_for(running.router.stop(0.1), WAIT_S)
        response = await asking
        assert "the router stopped" in response.text.strip().splitlines()[-1]
        await only.wait_closed()
    assert running.outcomes() == {"unavailable": 1}


# ---- bad input


async def test_a_thousand_bad_requests_change_nothing(running: Cluster) -> None:
    bad: list[tuple[bytes, str]] = [
        (b"{", "the body is not JSON"),
        (b"[]", "object"),
        (json.dumps({**BODY, "model": "other"}).encode(), "model"),
        (json.dumps({**BODY, "messages": []}).encode(), "messages"),
        (json.dumps({**BODY, "messages": [{"role": "user", "content": "x" * 2 * CONTEXT}]}).encode(), "messages"),
        (json.dumps({**BODY, "max_tokens": -1}).encode(), "max_tokens"),
        (json.dumps({**BODY, "temperature": "hot"}).encode(), "temperature"),
        (json.dumps({**BODY, "n": 0}).encode(), "n"),
    ]
    async with running.worker(answer=positional_answer(TEXT)) as only:
        members = running.router.members
        assert members is not None
        before = (repr(members.all), running.outcomes(), running.metrics.value("serval_num_requests_waiting"))
        async with RawClient(running) as client:
            for number in range(1000):
                body, says = bad[number % len(bad)]
                status, answer = await client.post("/v1/chat/completions", body)
                error = json.loads(answer)["error"]
                assert (status, error["type"]) == (400, "invalid_request_error")
                assert says in error["message"]
        assert (repr(members.all), running.outcomes(), running.metrics.value("serval_num_requests_waiting")) == before
        assert only.submits == []
        assert running.metrics.value("serval_rejections_total", reason="invalid") == 1000
        assert (await post(running, BODY)).status_code == 200


async def test_a_body_too_large_is_refused_with_413_however_it_is_sent(folder: Path) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" " * 1024

    async with cluster(folder, max_body_bytes=4096) as running:
        for content in (b" " * 8192, trickle()):
            response = await running.http.post("/v1/completions", content=content)
            assert (response.status_code, response.json()["error"]["type"]) == (413, "invalid_request_error")


async def test_a_body_that_does_not_come_is_given_up(folder: Path) -> None:
    async with cluster(folder, body_timeout_s=0.2) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports.http)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        status = await asyncio.wait_for(reader.readline(), WAIT_S)
        assert b"408" in status
        writer.close()


async def test_unknown_paths_and_methods_answer_in_openai_s_shape(running: Cluster) -> None:
    for response, status in (
        (await running.http.get("/v1/nothing"), 404),
        (await running.http.get("/v1/chat/completions"), 405),
        (await running.http.get("/v1/models/other"), 404),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


# ---- what operators see


async def test_health_ready_workers_and_scrape_targets(running: Cluster) -> None:
    assert (await running.http.get("/health")).status_code == 200
    response = await running.http.get("/ready")
    assert (response.status_code, "prefill" in response.text, "decode" in response.text) == (503, True, True)
    async with running.worker("prefill"), running.worker() as decode:
        assert (await running.http.get("/ready")).status_code == 200
        listed = (await running.http.get("/workers")).json()
        assert [(worker["role"], worker["name"]) for worker in listed] == [("prefill", "prefill-0"), ("decode", "decode-0")]
        assert listed[1]["incarnation"] == f"{decode.incarnation:x}"
        targets = (await running.http.get("/sd/prometheus")).json()
        assert [target["labels"]["role"] for target in targets] == ["router", "prefill", "decode"]
        assert targets[0]["targets"] == [f"127.0.0.1:{running.ports.http}"]


async def test_written_tokens_are_never_delayed_by_nagle(running: Cluster) -> None:
    await running.http.get("/health")
    internals = running.router._running
    assert internals is not None and internals._http._server is not None
    connections = list(internals._http._server.server_state.connections)
    assert connections
    for connection in connections:
        sock = connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_tokenizer_of_these_tests_splits_characters() -> None:
    assert len(byte_level_tokenizer().encode("😀").ids) == 4
