"""A decode step of a model shaped like LongCat-Flash against what its memory takes to read: random weights, one device.

A step cannot be faster than reading once the weights that it multiplies and the KV that it attends to. That is the floor, with the
bandwidth that copying gives in the same run. Layers and experts are fewer than Chat's so that one GPU holds them; all else keeps
Chat's proportions. Calls the engine's own code, as benchmarks/longcat_kernels.py does.

On a GPU each batch size is measured again as a captured CUDA graph, in the same run, steps taken in turn.

    python -m benchmarks.longcat_decode_floor --json FILE                                             # on a GPU, 28 GB
    python -m benchmarks.longcat_decode_floor --device cpu --hidden 768 --layers 2 --experts 16 --context 256
"""

import json
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.errors import NotMeasured
from benchmarks.measurement import JsonFile, Measurement, numbers
from benchmarks.paired import Machine, Verdict
from benchmarks.quantiles import median
from engine.attention.base import AttentionBackend
from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.decode_graph.choice import step_graphs
from engine.decode_graph.graphs import StepGraphs
from engine.kv_pool import KVPool
from engine.models.base import Model
from engine.models.blueprint import INPUT_EMBEDDING, tensor_shapes
from engine.models.longcat_config import LongcatConfig
from engine.models.registry import build_model, read_model_config
from engine.sequence import Sequence
from protocol.sampling import SamplingParams

BLOCK_SIZE = 16
COPIES = 5
MOST_COPIED_BYTES = 1 << 30


class BatchFloor(BaseModel):
    """Steps of one batch size."""

    model_config = ConfigDict(frozen=True)

    sequences: int
    step_s: list[float]
    replayed_s: list[float]
    """The same steps replayed as a CUDA graph; none where there is no GPU."""
    weight_bytes: int
    """Read by a step, if the router treats all experts alike."""
    kv_bytes: int
    floor_s: float

    @property
    def ratio(self) -> float:
        """Median step over the floor: 1 would be as fast as memory allows."""
        return median(self.step_s) / self.floor_s

    @property
    def replayed_ratio(self) -> float | None:
        """As `ratio`, of the steps replayed."""
        return median(self.replayed_s) / self.floor_s if self.replayed_s else None


class FloorReport(BaseModel):
    model_config = ConfigDict(frozen=True)

    machine: Machine
    device: str
    dtype: str
    parameters: int
    context: int
    bytes_per_s: float
    """Of copying: what is read and what is written, together."""
    batches: list[BatchFloor]

    def verdicts(self) -> SequenceOf[Verdict]:
        """No target: what is reached hangs on the device."""
        return ()


class RandomWeights:
    """A TensorSource that makes up every tensor, where it will be used."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return False

    def expect(self, names: set[str], ignorable: Callable[[str], bool], elsewhere: AbstractSet[str] = frozenset()) -> None:
        """Everything is there."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            fill = torch.zeros if name.endswith("e_score_correction_bias") else torch.ones
            return fill(shape, dtype=self._dtype, device=self._device)
        return torch.randn(shape, dtype=self._dtype, device=self._device).div_(shape[1] ** 0.5)


@dataclass(frozen=True)
class Place:
    """Where and in which format it is measured."""

    device: torch.device
    dtype: torch.dtype

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def run(
    hidden: Annotated[int, typer.Option(min=96, help="Width; a multiple of 96. Chat has 6144.")] = 6144,
    layers: Annotated[int, typer.Option(min=1, help="Chat has 28.")] = 4,
    experts: Annotated[int, typer.Option(min=12, help="Real ones, and half as many zero ones. Chat has 512.")] = 64,
    sequences: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32,96",
    context: Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")] = 4096,
    steps: Annotated[int, typer.Option(min=1, help="Steps measured of each batch size.")] = 20,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; on a GPU bfloat16.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure decode steps of a LongCat-Flash-shaped model against the memory's bandwidth.

    Exit status: 0 when it was measured, 2 when it could not be.
    """
    measurement = Measurement("longcat_decode_floor")
    torch.set_num_threads(threads)
    place = Place(torch.device(device), getattr(torch, dtype))
    batches: list[BatchFloor] = []
    bytes_per_s, parameters = 0.0, 0
    with measurement.running(), torch.inference_mode():
        if device == "cuda" and not torch.cuda.is_available():
            raise NotMeasured("torch finds no GPU; --device cpu measures the same there")
        config = chat_like(hidden, layers, experts, context)
        parameters = sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())
        bytes_per_s = copy_bytes_per_s(place)
        weights = RandomWeights(place.device, place.dtype)
        model = build_model(config, weights, EngineConfig(), dtype=place.dtype, device=place.device, max_model_len=context)
        counts = numbers("--sequences", sequences)
        batches.extend(measure(model, config, count, context, steps, bytes_per_s, place) for count in counts)
    report = FloorReport(
        machine=measurement.machine,
        device=torch.cuda.get_device_name(place.device) if place.device.type == "cuda" and batches else device,
        dtype=dtype,
        parameters=parameters,
        context=context,
        bytes_per_s=bytes_per_s,
        batches=batches,
    )
    measurement.end(report, render, json_file)


def chat_like(hidden: int, layers: int, experts: int, context: int) -> LongcatConfig:
    """Chat's proportions at another width."""
    raw: dict[str, Any] = {
        "architectures": ["LongcatFlashForCausalLM"],
        "vocab_size": 131072 * hidden // 6144,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_attention_heads": hidden // 96,
        "q_lora_rank": hidden // 4,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "ffn_hidden_size": 2 * hidden,
        "expert_ffn_hidden_size": hidden // 3,
        "n_routed_experts": experts,
        "zero_expert_num": experts // 2,
        "moe_topk": 12,
        "routed_scaling_factor": 6.0,
        "rope_theta": 1e7,
        "max_position_embeddings": context,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw))
        config = read_model_config(Path(folder))
    assert isinstance(config, LongcatConfig)
    return config


def copy_bytes_per_s(place: Place, size_bytes: int = MOST_COPIED_BYTES) -> float:
    """The best of several copies of a buffer that no cache holds."""
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    taken = []
    for _ in range(COPIES):
        place.wait()
        started_s = time.perf_counter()
        target.copy_(source)
        place.wait()
        taken.append(time.perf_counter() - started_s)
    return 2 * size_bytes / min(taken)


def measure(
    model: Model, config: LongcatConfig, count: int, context: int, steps: int, bytes_per_s: float, place: Place
) -> BatchFloor:
    """Each step makes its batch, computes it and reads the likeliest tokens, as the engine's does."""
    blocks = -(-context // BLOCK_SIZE)
    pool = KVPool(
        num_layers=config.num_kv_layers,
        num_blocks=count * blocks,
        block_size=BLOCK_SIZE,
        entry_width=config.entry_width,
        dtype=place.dtype,
        device=place.device,
    )
    attention = model.attention_over(pool)
    sequences = [
        Sequence(str(n), [n] * context, SamplingParams(), blocks=list(range(n * blocks, (n + 1) * blocks)))
        for n in range(count)
    ]
    spans = [Span(each, context - 1, context) for each in sequences]
    graphs = captured(model, pool, attention, count, context) if place.device.type == "cuda" else None

    def step() -> None:
        logits = model.forward(Batch(spans, BLOCK_SIZE, place.device), pool, attention)
        assert logits is not None
        logits.argmax(dim=-1).tolist()

    def replay() -> None:
        launch = None if graphs is None else graphs.launch(spans, None)
        assert launch is not None
        launch().numbers()

    taken: list[float] = []
    replayed: list[float] = []
    for number in range(-2, steps):  # the steps before the first warm up
        for work, times in ((step, taken), (replay, replayed))[: 1 if graphs is None else 2]:
            place.wait()
            started_s = time.perf_counter()
            work()
            if number >= 0:
                times.append(time.perf_counter() - started_s)
    value_bytes = place.dtype.itemsize
    weight_bytes, kv_bytes = weights_read(config, count) * value_bytes, count * context * config.kv_bytes_per_token(value_bytes)
    floor_s = (weight_bytes + kv_bytes) / bytes_per_s
    return BatchFloor(
        sequences=count, step_s=taken, replayed_s=replayed, weight_bytes=weight_bytes, kv_bytes=kv_bytes, floor_s=floor_s
    )


def captured(model: Model, pool: KVPool, attention: AttentionBackend, count: int, context: int) -> StepGraphs:
    """The engine's own graphs, of one size."""
    config = EngineConfig(max_sequences=count, max_batch_tokens=count, cuda_graph_sizes=(count,), speculation="off")
    graphs = step_graphs(config, model, pool, attention, context)
    try:
        graphs.capture()
    except (RuntimeError, ImportError) as error:
        raise NotMeasured(f"the step could not be captured: {error}") from error
    return graphs


def weights_read(config: LongcatConfig, tokens: int) -> int:
    """Parameters that a step of so many tokens multiplies, each counted once: of the experts, as many as tokens are expected to
    choose if the router treats all alike."""
    shapes = {name: torch.Size(shape).numel() for name, shape in tensor_shapes(config).items() if name != INPUT_EMBEDDING}
    experts = sum(size for name, size in shapes.items() if ".mlp.experts." in name)
    chosen = 1 - (1 - config.moe_topk / (config.n_routed_experts + config.zero_expert_num)) ** tokens
    return round(sum(shapes.values()) - experts + experts * chosen)


def render(report: FloorReport) -> RenderableType:
    columns = ("sequences", "step ms", "replayed ms", "floor ms", "ratio", "replayed ratio", "weights read", "KV read")
    table = Table(*columns, title="Decode steps and their floor")
    for each in report.batches:
        gib = [f"{size / (1 << 30):.2f} GiB" for size in (each.weight_bytes, each.kv_bytes)]
        replayed = f"{median(each.replayed_s) * 1e3:.2f}" if each.replayed_s else "no GPU"
        ratio = "" if each.replayed_ratio is None else f"{each.replayed_ratio:.2f}"
        times = f"{median(each.step_s) * 1e3:.2f}", replayed, f"{each.floor_s * 1e3:.2f}"
        table.add_row(str(each.sequences), *times, f"{each.ratio:.2f}", ratio, *gib)
    size = f"{report.parameters / 1e9:.2f} B parameters, {report.context} tokens of context, {report.dtype} on {report.device}"
    return Group(table, Text(f"{size}; copying {report.bytes_per_s / 1e9:.1f} GB/s; load {report.machine.load:.1f}"))


if __name__ == "__main__":
    typer.run(run)
