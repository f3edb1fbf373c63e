"""Engine steps that bring several tokens of an answer at once, as where guesses hold: nothing of it shows but the speed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from protocol import cluster_pb2, serval_pb2
from tests.integration.router_support import MODEL, Cluster, FakeWorker, byte_level_tokenizer, cluster, write_model_folder

TEXT = "Hello wörld, good day! So be it."
TOKENS = byte_level_tokenizer().encode(TEXT).ids
STEPS = [TOKENS[:1], TOKENS[1:5], TOKENS[5:6], TOKENS[6:15], TOKENS[15:]]
"""ö is two tokens, the first of which ends a step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Cluster]:
    async with cluster(folder) as started:
        yield started


def say(worker: FakeWorker, submit: cluster_pb2.Submit, steps: list[list[int]]) -> None:
    asked = submit.sampling.HasField("logprobs")
    for tokens in steps:
        chosen = [serval_pb2.TokenLogprob(token_id=token, logprob=-0.5) for token in tokens] if asked else []
        logprobs = [serval_pb2.TokenLogprobs(chosen=one) for one in chosen]
        worker.say(cluster_pb2.RequestOutput(request=submit.request, token_ids=tokens, logprobs=logprobs))


def asking(running: Cluster, **more: Any) -> "asyncio.Task[Any]":
    create = running.openai.completions.create(model=MODEL, prompt="x", **{"max_tokens": len(TOKENS)} | more)
    return asyncio.create_task(create)  # type: ignore[arg-type]


async def test_the_whole_text_and_every_token_is_counted(running: Cluster) -> None:
    async with running.worker() as only:
        task = asking(running)
        submit = await only.next_submit()
        say(only, submit, STEPS)
        only.say_ended(submit.request, "length")
        answer = await task
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "length")
    assert answer.usage.completion_tokens == len(TOKENS)
    value = running.metrics.value
    assert value("serval_generation_tokens_total") == len(TOKENS)
    assert value("serval_inter_token_latency_seconds_count") == len(TOKENS) - 1
    assert value("serval_time_to_first_token_seconds_count") == value("serval_user_tokens_per_second_count") == 1
    lasted_s = value("serval_request_time_per_output_token_seconds_sum") * (len(TOKENS) - 1)
    assert value("serval_inter_token_latency_seconds_sum") == pytest.approx(lasted_s)


@pytest.mark.parametrize("stop", ["lo", "o w", "wör", "good day", "day! So"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_anywhere_in_a_step_cuts_there(running: Cluster, stop: str, stream: bool) -> None:
    async with running.worker() as only:
        task = asking(running, stop=stop, stream=stream, logprobs=0)
        submit = await only.next_submit()
        say(only, submit, STEPS)
        assert await only.next_cancel() == submit.request
        only.say_ended(submit.request, "cancelled")
        answer = await task
        choices = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
    text = TEXT.partition(stop)[0]
    assert "".join(choice.text for choice in choices) == text
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    told = [logprob for choice in choices if choice.logprobs for logprob in choice.logprobs.token_logprobs]
    assert set(told) == {-0.5}
    assert len(told) >= len(byte_level_tokenizer().encode(text).ids)
    assert running.outcomes() == {"stop": 1}


async def test_logprobs_of_each_token_stand_where_its_text_does(running: Cluster) -> None:
    async with running.worker() as only:
        task = asking(running, logprobs=0)
        submit = await only.next_submit()
        say(only, submit, STEPS)
        only.say_ended(submit.request, "length")
        shown = (await task).choices[0].logprobs
    assert shown.token_logprobs == [-0.5] * len(TOKENS)
    assert len(shown.tokens) == len(shown.text_offset) == len(TOKENS)
    assert [TEXT[offset] for offset, token in zip(shown.text_offset, shown.tokens, strict=True) if token.isascii()] == [
        token for token in shown.tokens if token.isascii()
    ]


async def test_an_answer_goes_on_elsewhere_after_a_step_of_several(running: Cluster) -> None:
    async with running.worker() as lost, running.worker(name="decode-1") as other:
        task = asking(running)
        first, second = asyncio.create_task(lost.next_submit()), asyncio.create_task(other.next_submit())
        done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        began, goes_on, waiting = (lost, other, second) if first in done else (other, lost, first)
        submit = done.pop().result()
        say(began, submit, STEPS[:2])
        await running.until(lambda: running.metrics.value("serval_generation_tokens_total") == 5)
        await began.kill()
        again = await waiting
        assert list(again.prompt) == [*submit.prompt, *TOKENS[:5]]
        assert again.output_tokens == 5
        say(goes_on, again, STEPS[2:])
        goes_on.say_ended(again.request, "length")
        assert (await task).choices[0].text == TEXT
    assert running.outcomes() == {"length": 1}
