"""Rotary position embeddings: frequencies of every scaling rule that the Llama family uses, and tables ready to apply.

The rules are those of the papers and of transformers.modeling_rope_utils (default, linear, llama3, yarn), computed in float32 as
there, so that angles agree to the last bit.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from protocol.errors import ConfigError

SUPPORTED = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """One model's rotary embedding: the rule, its base and its parameters as config.json names them."""

    rule: str
    theta: float
    head_dim: int
    max_position_embeddings: int
    parameters: dict[str, Any] = field(default_factory=dict)

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """[head_dim / 2] angles per position, and the factor on cos and sin (1 except for yarn)."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        plain = 1.0 / (self.theta**exponents)
        if self.rule == "linear":
            return plain / self.number("factor"), 1.0
        if self.rule == "llama3":
            return self._llama3(plain), 1.0
        if self.rule == "yarn":
            return self._yarn(exponents)
        return plain, 1.0

    def number(self, name: str, default: float | None = None) -> float:
        """The rule's parameter `name`. Raises ConfigError where it is no number."""
        value = self.parameters.get(name, default)
        if not isinstance(value, int | float):
            raise ConfigError(f"model: rope scaling {self.rule} needs a number for {name}, not {value!r}")
        return value

    def _llama3(self, plain: torch.Tensor) -> torch.Tensor:
        factor, low, high = (self.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
        original = self.number("original_max_position_embeddings")
        wavelengths = 2 * math.pi / plain
        smooth = (original / wavelengths - low) / (high - low)
        blended = (1 - smooth) * plain / factor + smooth * plain
        scaled = torch.where(wavelengths > original / low, plain / factor, plain)
        between = (wavelengths >= original / high) & (wavelengths <= original / low)
        return torch.where(between, blended, scaled)

    def _yarn(self, exponents: torch.Tensor) -> tuple[torch.Tensor, float]:
        original = self.number("original_max_position_embeddings", self.max_position_embeddings)
        factor = self.number("factor", self.max_position_embeddings / original)
        low, high = (
            self.head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))
            for rotations in (self.number("beta_fast", 32), self.number("beta_slow", 1))
        )
        if self.parameters.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_dim - 1)
        ramp = torch.clamp((torch.arange(self.head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001), 0, 1)
        powers = self.theta**exponents
        frequencies = (1.0 / (factor * powers)) * ramp + (1.0 / powers) * (1 - ramp)
        return frequencies, self._yarn_attention_factor(factor)

    def _yarn_attention_factor(self, factor: float) -> float:
        given = self.parameters.get("attention_factor")
        if given is not None:
            return float(given)

        def magnitude(coefficient: float) -> float:
            return 1.0 if factor <= 1 else 0.1 * coefficient * math.log(factor) + 1.0

        mscale, mscale_all = self.parameters.get("mscale"), self.parameters.get("mscale_all_dim")
        return magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)


def read_rope(raw: dict[str, Any], head_dim: int, max_position_embeddings: int) -> Rope:
    """From config.json: `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before)."""
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    rule = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    if rule not in SUPPORTED:
        raise ConfigError(f"model: rope scaling {rule} is not supported; supported are {', '.join(SUPPORTED)}")
    if parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError("model: a partial_rotary_factor other than 1 is not supported")
    return Rope(rule, theta, head_dim, max_position_embeddings, parameters)


class RopeTable:
    """cos and sin of every position, in the model's dtype; the sine carries the rotation's sign."""

    def __init__(self, rope: Rope, num_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        frequencies, factor = rope.frequencies()
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        self._half = rope.head_dim // 2
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype).to(device)
        self._signed_sin = torch.cat((-sin, sin), dim=-1).to(dtype).to(device)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin, [tokens, 1, head_dim], to broadcast over heads."""
        return self._cos[positions].unsqueeze(1), self._signed_sin[positions].unsqueeze(1)

    def rotate_(self, heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
        """Rotates `heads` [tokens, heads, head_dim] in place: x·cos + (second half, first half)·(-sin, sin)."""
        swapped = heads.roll(self._half, -1)
        heads.mul_(cos).addcmul_(swapped, signed_sin)
