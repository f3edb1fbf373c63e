"""A tiny LongCat-Flash whose MTP head is right most of the time, as a trained one is. A random head almost never is.

Both the model and its head hang mostly on their last token: what attentions, MLPs and experts add is made small, the head starts
from the token's own embedding, and its last norm is the model's. Small is not nothing: a wrong KV entry still changes answers.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.tiny_longcat import write_tiny_longcat

ADDED = 0.02
"""Factor on what each layer adds to the residual stream."""
PEAKED = 1.6
"""Factor on the logits, so that drawn answers take the likeliest token often too."""
HEAD = "model.mtp.layers.0"


def write_agreeing_longcat(folder: Path, *, seed: int = 0) -> Path:
    """Returns `folder`."""
    write_tiny_longcat(folder, seed=seed)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"routed_scaling_factor": ADDED}))
    files = {path: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
    for path, file in files.items():
        save_file({name: _changed(name, tensor, tensors) for name, tensor in file.items()}, path)
    return folder


def _changed(name: str, tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    if name == f"{HEAD}.eh_proj.weight":
        hidden = len(tensor)
        return torch.cat((torch.eye(hidden), tensor[:, hidden:] * ADDED), dim=1)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return tensor * ADDED
    if name == "lm_head.weight":
        return tensor * PEAKED
    if name == f"{HEAD}.enorm.m.weight":
        return torch.ones_like(tensor)
    same_as = {"model.mtp.embed_tokens.weight": "model.embed_tokens.weight", "model.mtp.norm.weight": "model.norm.weight"}
    return tensors[same_as.get(name, name)].clone()
