"""What undisturbed answers are: one engine without transfer, in a process of its own: the clients' clocks do not wait for it."""

import asyncio
import functools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from cluster_clients import Answer, Ask
from cluster_reference import Expected as Wanted
from cluster_reference import Reference
from matrix_client import Client
from matrix_ties import is_tied_draw
from tokenizers import Tokenizer

HALF_A_CHARACTER = "\ufffd"


@functools.cache
def _reference(model: Path) -> Reference:
    """In the other process, once."""
    return Reference(model)


def _answers(model: Path, asks: Sequence[Ask]) -> list[Wanted]:
    return _reference(model).answers(asks)


def _compare(model: Path, ask: Ask, answer: Answer, wanted: Wanted) -> None:
    """Raises AssertionError where the answer is not right. One that parts from the undisturbed one at a tied draw is, if it goes on
    as an undisturbed one does from there."""
    reference = _reference(model)
    parting = next(
        (index for index, (got, want) in enumerate(zip(answer.token_ids, wanted.token_ids, strict=False)) if got != want), None
    )
    if ask.params.is_greedy or parting is None:
        reference.assert_same([ask], [answer], [wanted])
        return
    got, want = answer.token_ids[parting], wanted.token_ids[parting]
    position = len(ask.prompt) + parting
    is_tied = is_tied_draw(ask.params, position, wanted.logprobs[parting].top, (got, want))
    assert is_tied, f"token {parting} is {got}, not {want}: cluster {answer.token_ids}, one process {wanted.token_ids}"
    done = parting + 1
    if done < ask.params.max_tokens:
        rest = Ask((*ask.prompt, *answer.token_ids[:done]), replace(ask.params, max_tokens=ask.params.max_tokens - done))
        _compare(model, rest, replace(answer, token_ids=answer.token_ids[done:]), reference.answers([rest])[0])


class Expected:
    """Shared by all clusters of a run."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    async def of(self, asks: Sequence[Ask]) -> list[Wanted]:
        return await asyncio.get_running_loop().run_in_executor(self._process, _answers, self._model, asks)

    async def differences(self, client: Client, wanted: Wanted) -> list[str]:
        """What a client got that is not the undisturbed answer, or not a beginning of it where it was told of an error."""
        if client.over_http:
            text = self._tokenizer.decode(wanted.token_ids).rstrip(HALF_A_CHARACTER)
            got = client.text.rstrip(HALF_A_CHARACTER)
            is_right = got == text if client.finish is not None else text.startswith(got)
            return [] if is_right else [f"its text differs: {got!r} for {text!r}"]
        if client.finish is None:
            is_right = wanted.token_ids[: len(client.token_ids)] == client.token_ids
            return [] if is_right else [f"its tokens differ: {client.token_ids} for {wanted.token_ids}"]
        if client.token_ids == wanted.token_ids:
            return []
        answer = Answer(client.token_ids, [], client.finish)  # two logits may be as good as equal
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._process, _compare, self._model, client.ask, answer, wanted)
        except AssertionError as error:
            return [f"its answer differs: {error}"]
        return []

    def close(self) -> None:
        self._process.shutdown()
