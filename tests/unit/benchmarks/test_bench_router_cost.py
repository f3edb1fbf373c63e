"""The router's cost: the mock engine's tokens, the client's reading of them, and the report's arithmetic."""

import asyncio
import os
import time

import pytest

from benchmarks.paired import Machine
from benchmarks.router_cost.answers import Answers
from benchmarks.router_cost.client import BadAnswer, check, read
from benchmarks.router_cost.cpu import cpu_s
from benchmarks.router_cost.mock_engine import MockEngine, Stamps, Token
from benchmarks.router_cost.report import CostReport, Phase, Relay, Round, StreamsReport, render
from benchmarks.terminal import result_console

WAIT_S = 5.0
ANSWERS = Answers({"Ġapple": 1, "Ġbread": 2, "Ġcheese": 3, "Ġdill": 4, "x": 5, "ĠNo": 6})


def chunked(*events: str) -> bytes:
    return b"".join(f"{len(event):x}\r\n{event}\r\n".encode() for event in events) + b"0\r\n\r\n"


def said(text: str) -> str:
    return f'data: {{"choices":[{{"delta":{{"content":"{text}"}}}}]}}\n\n'


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = "data: [DONE]\n\n"


def test_each_request_has_words_of_its_own_that_name_it() -> None:
    assert len(ANSWERS) == 4
    assert ANSWERS.words(2, 4) == ["cheese", "dill", "apple", "bread"]
    assert [ANSWERS.token(2, position) for position in range(4)] == [3, 4, 1, 2]
    assert ANSWERS.number("cheese") == 2
    assert ANSWERS.number("x") is None


def test_tokens_get_the_time_of_the_bytes_that_completed_their_event() -> None:
    body = chunked(said(" bread"), said(" cheese dill"), DONE)
    cut = body.index(b"cheese")
    answer = read([(1.0, HEAD + body[:cut]), (2.0, body[cut:])])
    assert (answer.at_s, answer.events) == ([1.0, 2.0, 2.0], 2)
    assert check(answer, ANSWERS, tokens=3) == 1


def test_an_answer_without_its_leading_space_counts_the_same() -> None:
    answer = read([(1.0, HEAD + chunked(said("bread"), said(" cheese"), DONE))])
    assert check(answer, ANSWERS, tokens=2) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + chunked(said(" bread")),
        HEAD + chunked('data: {"error":{"message":"gone"}}\n\n', DONE),
    ],
)
def test_a_bad_answer_is_no_figure(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        read([(1.0, data)])


@pytest.mark.parametrize("text", [" bread dill", " bread", " x"])
def test_text_that_was_not_sent_is_noticed(text: str) -> None:
    answer = read([(1.0, HEAD + chunked(said(text), DONE))])
    with pytest.raises(BadAnswer):
        check(answer, ANSWERS, tokens=2)


class Recorder:
    """A Connection that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[str, int, bool]]] = []
        self.sent = asyncio.Event()

    def encode(self, tokens: list[Token]) -> list[tuple[str, int, bool]]:
        return [(token.stream.key, token.token_id, token.is_last) for token in tokens]

    async def send(self, message: list[tuple[str, int, bool]]) -> None:
        self.steps.append(message)
        self.sent.set()
        await asyncio.sleep(0)


async def test_a_first_token_goes_alone_and_the_others_in_steps_of_all_streams() -> None:
    recorder, stamps = Recorder(), Stamps(len(ANSWERS))
    engine = MockEngine(ANSWERS, stamps, recorder)
    engine.add("a", 3)
    engine.add("b", 2)
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(WAIT_S):
        while engine.streams:
            recorder.sent.clear()
            await recorder.sent.wait()
    running.cancel()
    assert recorder.steps == [
        [("a", 1, False), ("b", 2, False)],
        [("a", 2, False), ("b", 3, True)],
        [("a", 3, True)],
    ]
    assert {number: len(sent_s) for number, sent_s in stamps.sent_s.items()} == {0: 3, 1: 2}


async def test_a_paced_engine_lets_a_new_request_begin_at_once() -> None:
    recorder, stamps = Recorder(), Stamps(len(ANSWERS))
    engine = MockEngine(ANSWERS, stamps, recorder)
    engine.pace_s = 60.0
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(WAIT_S):
        for key in ("a", "b"):
            recorder.sent.clear()
            engine.add(key, 100)
            while not any(step[0][0] == key for step in recorder.steps):
                recorder.sent.clear()
                await recorder.sent.wait()
    running.cancel()
    assert recorder.steps[-1] == [("b", 2, False)]


def test_more_requests_than_can_be_told_apart_are_refused() -> None:
    stamps = Stamps(1)
    assert stamps.next_number() == 0
    with pytest.raises(RuntimeError):
        stamps.next_number()
    stamps.start()
    assert stamps.next_number() == 0


def test_processor_time_is_the_kernels() -> None:
    before_s, before = cpu_s(os.getpid()), time.process_time()
    while time.process_time() - before < 0.1:
        pass
    assert 0.05 < cpu_s(os.getpid()) - before_s < 0.5


def phase(cpu_us: float, first_p99_ms: float = 1.0) -> Phase:
    relay = Relay(first_p50_ms=0.5, first_p99_ms=first_p99_ms, p50_ms=0.5, p99_ms=2.0)
    return Phase(cpu_us_per_token=cpu_us, tokens_per_s=1000.0, tokens_per_event=2.0, relay=relay)


def report(ours_us: float, theirs_us: float | None, first_p99_ms: float) -> CostReport:
    ours = [Round(flooded=phase(ours_us), paced=phase(50), half_load=phase(30, first_p99_ms))]
    theirs = [] if theirs_us is None else [Round(flooded=phase(theirs_us), paced=phase(100), half_load=phase(30))]
    streams = [StreamsReport(streams=32, ours=ours, theirs=theirs)]
    peer = None if theirs_us is None else "smg"
    machine = Machine(processor="p", cores=2, load=0.0, python="3", system="s")
    return CostReport(machine=machine, tokens=200, pace_ms=20.0, streams_per_worker=64, peer=peer, streams=streams)


def test_targets_are_cheaper_than_the_peer_and_a_prompt_first_token() -> None:
    assert [verdict.met for verdict in report(20, 30, 4.0).verdicts()] == [True, True]
    assert [verdict.met for verdict in report(40, 30, 6.0).verdicts()] == [False, False]
    assert [verdict.met for verdict in report(40, None, 4.0).verdicts()] == [True]


def test_delays_are_of_first_tokens_and_of_all() -> None:
    relay = Relay.of([[0.001, 0.003], [0.002, 0.004]])
    assert (relay.first_p50_ms, relay.p50_ms) == (1.5, 2.5)


def test_the_report_is_shown_with_and_without_a_peer() -> None:
    console = result_console()
    with console.capture() as capture:
        console.print(render(report(20, 30, 4.0)))
        console.print(render(report(20, None, 4.0)))
    assert "0.67" in capture.get()
