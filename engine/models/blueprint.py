"""A model without its weights: what it would read, and how much that is."""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod

import torch

from engine.config import EngineConfig
from engine.models.config import ModelConfig
from engine.models.longcat_config import LongcatConfig
from engine.models.registry import build_model

INPUT_EMBEDDING = "model.embed_tokens.weight"
NGRAM_TABLES = ".ngram_embeddings.embedders."
"""In the names of the tensors in which n-grams are looked up."""
KEPT_DENSE = (".mlps.", ".o_proj.")
"""In the names of matrices, the experts' apart, that stay in 8 bits where a checkpoint has them so."""
EXPERTS = ".mlp.experts."
"""In the names of the tensors of which a token uses some experts' only."""


class Blueprint:
    """A TensorSource that holds whatever it is asked for, on the meta device, and notes it."""

    def __init__(self) -> None:
        self.expected: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        """No tensor that a checkpoint may hold or not."""
        return False

    def expect(self, names: set[str], ignorable: Callable[[str], bool], elsewhere: AbstractSet[str] = frozenset()) -> None:
        self.expected = names - elsewhere

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.shapes[name] = shape
        return torch.empty(shape, device="meta")


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
    kept_dense: int = 0
    """Of those that are no experts', what may stay in 8 bits; so may all experts."""

    def per_worker(self, expert_split: int) -> int:
        """Parameters that one of `expert_split` workers holds, if they share the experts and each has all the rest."""
        return self.total - self.experts + self._experts_of_worker(expert_split)

    def eight_bit_bytes_per_worker(self, expert_split: int, value_bytes: int) -> int:
        """Of the weights, if all that may is in 8 bits and the rest takes `value_bytes` each. Scales, 0.02 %, are left out."""
        kept = self.kept_dense + self._experts_of_worker(expert_split)
        return kept + (self.total - self.experts - self.kept_dense) * value_bytes

    def _experts_of_worker(self, expert_split: int) -> int:
        return -(-self.experts // expert_split)


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
    kept_dense = sum(prod(shape) for name, shape in shapes.items() if any(part in name for part in KEPT_DENSE))
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
    return Parameters(total, experts, least, mean, most, kept_dense)
