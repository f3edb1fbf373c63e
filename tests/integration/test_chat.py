"""`serval chat` against a real router: the conversation, its figures, what stops an answer, what an error looks like."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.chat_client import AnswerFailed, ChatOptions, Conversation, connect, served_model
from serving.chat_client import Cluster as ClusterAddress
from tests.integration.router_support import MODEL, WAIT_S, Cluster, cluster, positional_answer, write_model_folder

pytestmark = pytest.mark.cluster

TEXT = "Hello the stop again! "


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(write_model_folder(tmp_path)) as one, one.worker("prefill"):
        yield one


def ask(one: Cluster, *questions: str, **options: object) -> Conversation:
    """Asks one question after the other; runs in a thread."""
    with connect(ClusterAddress(one.url)) as client:
        conversation = Conversation(client, ChatOptions(served_model(client), **options))  # type: ignore[arg-type]
        for question in questions:
            for _ in conversation.ask(question):
                pass
        return conversation


async def test_the_history_grows_and_goes_out_with_every_question(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)) as worker:
        conversation = await asyncio.to_thread(ask, running, "one", "two", system="Be brief.", max_tokens=12, temperature=0.0)
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant", "user", "assistant"]
    first, second = worker.submits
    assert len(second.prompt) > len(first.prompt) + 12
    assert (second.sampling.max_tokens, second.sampling.temperature) == (12, 0.0)
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


async def test_figures_count_the_answers_tokens(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        conversation = await asyncio.to_thread(ask, running, "one", max_tokens=12)
    assert conversation.figures is not None
    assert conversation.figures.tokens == 12
    assert conversation.figures.ttft_s > 0
    assert str(conversation.figures).startswith("12 tokens, first after ")


async def test_a_refused_question_is_said_and_forgotten(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        with connect(ClusterAddress(running.url)) as client, pytest.raises(AnswerFailed, match="another-model"):
            conversation = Conversation(client, ChatOptions("another-model"))
            await asyncio.to_thread(list, conversation.ask("hi"))
    assert conversation.messages == []


async def test_an_answer_that_fails_midway_is_an_error(running: Cluster) -> None:
    async with running.worker() as worker:
        asking = asyncio.create_task(asyncio.to_thread(ask, running, "one"))
        submit = await worker.next_submit()
        worker.say_tokens(submit.request, [40, 41])
        worker.say_ended(submit.request, "internal", "the engine broke")
        with pytest.raises(AnswerFailed, match="the engine broke"):
            await asyncio.wait_for(asking, WAIT_S)


async def test_what_was_answered_before_a_stop_stays_in_the_history(running: Cluster) -> None:
    def ask_and_stop() -> list[dict[str, str]]:
        with connect(ClusterAddress(running.url)) as client:
            conversation = Conversation(client, ChatOptions(MODEL))
            answer = conversation.ask("one")
            piece = next(answer)
            answer.close()  # type: ignore[attr-defined]
            assert conversation.messages[-1] == {"role": "assistant", "content": piece}
            return conversation.messages

    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as worker:
        messages = await asyncio.to_thread(ask_and_stop)
        assert len(messages) == 2
        await worker.next_cancel()


async def test_in_the_terminal(running: Cluster) -> None:
    """A question, Ctrl-C within its answer, another command, the end: one process, as a person would use it."""
    async with running.worker(answer=positional_answer(TEXT), hold_after=3) as worker:
        terminal = await start_chat(running)
        await say(terminal, "hello")
        assert terminal.stdout is not None
        prompt_and_first_character = 3
        await asyncio.wait_for(terminal.stdout.readexactly(prompt_and_first_character), 3 * WAIT_S)
        terminal.send_signal(signal.SIGINT)
        await read_until(terminal.stderr, b"stopped")
        await worker.next_cancel()
        await say(terminal, "/what")
        await read_until(terminal.stderr, b"/reset forgets")
        await say(terminal, "/reset")
        await read_until(terminal.stderr, b"forgotten")
        await say(terminal, "/exit")
        assert await asyncio.wait_for(terminal.wait(), WAIT_S) == 0


async def test_one_question_prints_the_answer_alone_on_stdout(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        terminal = await start_chat(running, "hello", "--max-tokens", "9", "--temperature", "0")
        output, side = await asyncio.wait_for(terminal.communicate(), 3 * WAIT_S)
    assert terminal.returncode == 0
    assert output.count(b"\n") == 1
    assert b"9 tokens, first after" in side


async def start_chat(one: Cluster, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "serving.cli", "chat", *arguments, "--url", one.url]
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)


async def say(terminal: asyncio.subprocess.Process, line: str) -> None:
    assert terminal.stdin is not None
    terminal.stdin.write(line.encode() + b"\n")
    await terminal.stdin.drain()


async def read_until(stream: asyncio.StreamReader | None, text: bytes) -> None:
    assert stream is not None
    await asyncio.wait_for(stream.readuntil(text), 3 * WAIT_S)
