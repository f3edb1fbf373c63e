"""A split model whose followers are threads of this process: what is computed and said is the same, and they start at once."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import torch
from torch import distributed

from engine.config import EngineConfig
from engine.engine import Engine
from engine.kv_pool import KVPool
from engine.loading import load_model
from engine.models.base import Model
from engine.split import follower
from engine.split.channel import Message, SplitFailed
from engine.split.group import make_group
from engine.split.model import SplitModel
from engine.split.ranks import Ranks
from engine.split.share import Share
from telemetry.metrics import Metrics
from tests.unit.engine.conftest import EngineUnderTest

TIMEOUT_S = 60.0
CPU = torch.device("cpu")


class ThreadLeader:
    """What a SplitModel wants of a Leader."""

    def __init__(self, size: int) -> None:
        self.failure: str | None = None
        self.told: list[Message] = []
        self.queues: list[queue.SimpleQueue[Message]] = [queue.SimpleQueue() for _ in range(1, size)]

    def tell(self, message: Message) -> None:
        packed = orjson.dumps(message)
        self.told.append(orjson.loads(packed))
        for each in self.queues:
            each.put(orjson.loads(packed))

    def give_up(self, why: str) -> SplitFailed:
        self.failure = self.failure or why
        return SplitFailed(self.failure)

    def close(self) -> None:
        """Threads that wait for ever end with the process."""


class SplitUnderTest(EngineUnderTest):
    """`models`, `pools`: by rank."""

    def __init__(self, folder: Path, size: int, **settings: object) -> None:
        config = settings_of(tensor_parallel_size=size, **settings)
        self.leader = ThreadLeader(size)
        self.models: dict[int, Model] = {}
        self.pools: dict[int, KVPool] = {}
        self.lengths: set[int] = set()
        self.errors: list[BaseException] = []
        self._config, self._folder, self._store = config, folder, distributed.HashStore()
        loaded = [threading.Event() for _ in range(1, size)]
        for rank in range(1, size):
            threading.Thread(target=self._follow, args=(rank, loaded[rank - 1]), daemon=True).start()
        ranks = self._load(0)
        assert all(event.wait(TIMEOUT_S) for event in loaded)
        if self.errors:
            raise self.errors[0]
        pool = self.pools[0]
        model = SplitModel(self.models[0], self.leader, ranks, pool.num_blocks, pool.block_size)  # type: ignore[arg-type]
        metrics = Metrics("decode", "test")
        grammars = whole(folder, **settings).engine._grammars
        (length,) = self.lengths
        super().__init__(Engine(model, pool, config, grammars, metrics, max_model_len=length), metrics)

    def _load(self, rank: int) -> Ranks:
        share = Share(rank, self._config.tensor_parallel_size)
        ranks = Ranks(share, make_group(self._store, share, CPU, "127.0.0.1", TIMEOUT_S))
        self.models[rank], self.pools[rank], length = load_model(self._folder, self._config, None, ranks)
        self.lengths.add(length)
        return ranks

    def _follow(self, rank: int, loaded: threading.Event) -> None:
        try:
            ranks = self._load(rank)
        except BaseException as error:
            self.errors.append(error)
            return
        finally:
            loaded.set()
        follower.compute(self.leader.queues[rank - 1], self.models[rank], self.pools[rank], ranks)

    def say(self, kind: str) -> list[Message]:
        """What was told of this kind."""
        return [message for message in self.leader.told if message["kind"] == kind]


def settings_of(**changes: object) -> EngineConfig:
    settings: dict[str, object] = {
        "dtype": "float32",
        "device": "cpu",
        "kv_memory_bytes": 2 << 20,
        "max_sequences": 16,
        "max_batch_tokens": 64,
        "threads": 1,
        "check_integrity": True,
    }
    return EngineConfig.model_validate(settings | changes)


def whole(folder: Path, **settings: object) -> EngineUnderTest:
    """The same in one process."""
    metrics = Metrics("decode", "test")
    return EngineUnderTest(Engine.load(folder, settings_of(**settings), metrics), metrics)


def recorded(under_test: EngineUnderTest) -> list[torch.Tensor]:
    """The logits of every forward pass from now on."""
    model, seen = under_test.engine.model, list[torch.Tensor]()
    forward: Callable[..., torch.Tensor | None] = model.forward

    def recording(*arguments: object, **named: object) -> torch.Tensor | None:
        logits = forward(*arguments, **named)
        if logits is not None:
            seen.append(logits.clone())
        return logits

    model.forward = recording  # type: ignore[method-assign]
    return seen
