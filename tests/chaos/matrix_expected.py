"""What undisturbed answers are: one engine without transfer, in a thread of its own, beside the cluster."""

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster_clients import Answer, Ask
from cluster_reference import Expected as Wanted
from cluster_reference import Reference
from matrix_client import Client
from tokenizers import Tokenizer

HALF_A_CHARACTER = "\ufffd"


class Expected:
    """Shared by all clusters of a run."""

    def __init__(self, model: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reference")
        self._reference = self._thread.submit(Reference, model).result()
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    async def of(self, asks: Sequence[Ask]) -> list[Wanted]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reference.answers, asks)

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
        answer = Answer(client.token_ids, [], client.finish)
        try:
            compare = functools.partial(self._reference.assert_same, [client.ask], [answer], [wanted])
            await asyncio.get_running_loop().run_in_executor(self._thread, compare)
        except AssertionError as error:
            return [f"its answer differs: {error}"]
        return []

    def close(self) -> None:
        self._thread.shutdown()
