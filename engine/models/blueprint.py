"""A model without its weights: what it would read, and how much that is."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod

import torch

from engine.config import EngineConfig
from engine.eight_bit import FORMAT
from engine.models.config import ModelConfig
from engine.models.longcat_config import LongcatConfig
from engine.models.registry import build_model
from engine.models.weights import SCALE_SUFFIX

INPUT_EMBEDDING = "model.embed_tokens.weight"
NGRAM_TABLES = ".ngram_embeddings.embedders."
"""In the names of the tensors in which n-grams are looked up."""
KEPT_DENSE = (".mlps.", ".o_proj.")
"""In the names of matrices, the experts' apart, that stay in 8 bits where a checkpoint has them so."""
EXPERTS = ".mlp.experts."
"""In the names of the tensors of which a token uses some experts' only."""


class Blueprint:
    """A TensorSource that holds whatever it is asked for, on the meta device, and notes it."""

    def __init__(self, *, eight_bit: bool = False) -> None:
        """`eight_bit`: all that may be in 8 bits is, and has scales."""
        self.expected: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._eight_bit = eight_bit

    def __contains__(self, name: str) -> bool:
        """No tensor that a checkpoint may hold or not."""
        matrix = name.removesuffix(SCALE_SUFFIX)
        return self._eight_bit and matrix != name and may_stay_in_eight_bit(matrix)

    def expect(self, names: set[str], ignorable: Callable[[str], bool], elsewhere: AbstractSet[str] = frozenset()) -> None:
        self.expected = names - elsewhere

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith(SCALE_SUFFIX):
            return torch.empty(shape, device="meta")
        self.shapes[name] = shape
        is_eight_bit = self._eight_bit and may_stay_in_eight_bit(name)
        return torch.empty(shape, dtype=FORMAT if is_eight_bit else torch.float32, device="meta")


def may_stay_in_eight_bit(name: str) -> bool:
    """Whether the matrix `name` is kept in 8 bits where a checkpoint has it so."""
    return any(part in name for part in (*KEPT_DENSE, EXPERTS))


@dataclass(frozen=True)
class Parameters:
    """Counts. A token activates what is multiplied for it: not the tables in which its embedding is looked up, and of the experts
    those that its router chooses, zero experts being free. A head for drafting is counted only where it is on."""

    total: int
    experts: int
    """Of the total, those of experts that a router chooses among."""
    activated_min: int
    activated_mean: int
    """If the router treats all experts alike."""
    activated_max: int


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model reads, found by building it on the meta device. A head that may be tied is."""
    blueprint = Blueprint()
    meta = torch.device("meta")
    build_model(config, blueprint, EngineConfig(), dtype=torch.bfloat16, device=meta, max_model_len=1)
    assert set(blueprint.shapes) == blueprint.expected, "a model must read what it expects"
    return blueprint.shapes


def count_draft_head(config: ModelConfig) -> tuple[int, int]:
    """Parameters that its family's head for drafting adds, without an embedding of its own and with one; 0 where it has none."""
    drafting = config.with_draft_head()
    if drafting is None:
        return 0, 0
    shapes, all_shapes = tensor_shapes(config), tensor_shapes(drafting)
    added = sum(prod(shape) for name, shape in all_shapes.items() if name not in shapes)
    return added, added + prod(shapes[INPUT_EMBEDDING])


def count_parameters(config: ModelConfig) -> Parameters:
    """From the shapes that config.json implies."""
    shapes = tensor_shapes(config)
    total = sum(map(prod, shapes.values()))
    experts = sum(prod(shape) for name, shape in shapes.items() if EXPERTS in name)
    always = total - experts
    if "lm_head.weight" in shapes:  # else the table is the head too
        always -= prod(shapes[INPUT_EMBEDDING])
    always -= sum(prod(shape) for name, shape in shapes.items() if NGRAM_TABLES in name)
    if not isinstance(config, LongcatConfig):
        return Parameters(total, experts, always, always, always)
    one_expert_per_layer = experts // config.n_routed_experts
    fewest = max(0, config.moe_topk - config.zero_expert_num)
    greatest = min(config.moe_topk, config.n_routed_experts)
    least, mean, most = (
        round(always + one_expert_per_layer * chosen) for chosen in (fewest, config.mean_real_experts, greatest)
    )
    return Parameters(total, experts, least, mean, most)
