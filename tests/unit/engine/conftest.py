"""A tiny model and engines over it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.base import OnLayer
from engine.sequence import Sequence, SequenceUpdate
from engine.tiny import write_tiny_llama
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics

STEP_LIMIT = 3000


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


class EngineUnderTest:
    """An engine without its thread: steps by hand, releases what ends."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self.updates: list[SequenceUpdate] = []

    def finish(self, *sequences: Sequence) -> dict[str, SequenceUpdate]:
        """Submits, steps until idle, releases; the final update by request id."""
        for sequence in sequences:
            self.engine.submit(sequence)
        for _ in range(STEP_LIMIT):
            if self.engine.is_idle:
                break
            self.step()
        assert self.engine.is_idle, "the engine does not come to an end"
        return {update.request_id: update for update in self.updates if update.finish}

    def step(self) -> list[SequenceUpdate]:
        updates = self.engine.step()
        self.updates += updates
        for update in updates:
            if update.finish:
                self.engine.release(update.sequence)
        return updates

    def answer(self, prompt: list[int], **params: object) -> list[int]:
        """The tokens of one request, alone."""
        sequence = greedy("alone", prompt, **params)
        self.finish(sequence)
        return sequence.output


def greedy(request_id: str, prompt: list[int], **params: object) -> Sequence:
    settings: dict[str, object] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | params
    return Sequence(request_id, prompt, SamplingParams(**settings))  # type: ignore[arg-type]


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


MakeEngine = Callable[..., EngineUnderTest]


@pytest.fixture
def make_engine(tiny_folder: Path) -> MakeEngine:
    def make(*, blocks: int = 256, on_layer: OnLayer | None = None, **config: object) -> EngineUnderTest:
        settings: dict[str, object] = {
            "dtype": "float32",
            "device": "cpu",
            "kv_memory_bytes": blocks * 4 * 16 * 64 * 4,  # layers * block_size * entry_width * bytes
            "max_sequences": 16,
            "max_batch_tokens": 64,
            "threads": 1,
            "check_integrity": True,
        } | config
        metrics = Metrics("decode", "test")
        return EngineUnderTest(Engine.load(tiny_folder, EngineConfig(**settings), metrics, on_layer=on_layer), metrics)  # type: ignore[arg-type]

    return make
