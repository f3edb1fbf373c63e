"""Loading needs the memory of the model and of one file: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.models.blueprint import tensor_shapes
from engine.models.registry import read_model_config
from engine.tiny_longcat import CONFIG, write_tiny_longcat

SHARD_BYTES = 24 << 20
KV_BYTES = 1 << 20
BESIDE_BYTES = 16 << 20
"""For what is not weights: code pages of kernels first run while loading, the tokenizer's grammar tables, freed memory that the C
library keeps."""
WIDE = {"hidden_size": 256, "num_layers": 8, "n_routed_experts": 32, "expert_ffn_hidden_size": 256, "ffn_hidden_size": 512}
MEASURE = f"""
import ctypes, gc, json, re, sys
from pathlib import Path
import torch
from engine.config import EngineConfig
from engine.engine import Engine
from telemetry.metrics import Metrics

def resident(line):
    return int(re.search(line + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) << 10

def load(folder, dtype):
    config = EngineConfig(dtype=dtype, device="cpu", kv_memory_bytes={KV_BYTES}, threads=1)
    return Engine.load(Path(folder), config, Metrics("decode", "test"))

sizes = {{}}
for dtype in sys.argv[3:]:
    load(sys.argv[1], dtype)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    engine = load(sys.argv[2], dtype)
    sizes[dtype] = {{"peak": resident("VmHWM") - before, "held": resident("VmRSS") - before}}
    del engine
print(json.dumps(sizes))
"""


def write_wide_checkpoint(folder: Path) -> tuple[int, int]:
    """Returns the bytes of its tensors, and of its largest file."""
    write_tiny_longcat(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "config.json").write_text(json.dumps(CONFIG | WIDE | {"torch_dtype": "bfloat16"}))
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in sorted(tensor_shapes(read_model_config(folder)).items()):
        tensor = torch.full(shape, 0.01, dtype=torch.bfloat16)
        if sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"{number}.safetensors")
        weight_map |= dict.fromkeys(shard, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = [sum(each.nbytes for each in shard.values()) for shard in shards]
    assert len(sizes) > 2
    return sum(sizes), max(sizes)


def measured(folder: Path, tiny: Path, *dtypes: str) -> dict[str, dict[str, int]]:
    arguments = [sys.executable, "-c", MEASURE, str(tiny), str(folder), *dtypes]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    sizes: dict[str, dict[str, int]] = json.loads(result.stdout)
    return sizes


def test_peak_is_the_model_and_one_file(tmp_path: Path) -> None:
    """Both when the weights are kept as they are in the file and when they are made wider."""
    tiny = write_tiny_longcat(tmp_path / "tiny")
    stored, shard = write_wide_checkpoint(tmp_path / "wide")
    found = measured(tmp_path / "wide", tiny, "bfloat16", "float32")
    for sizes, model in ((found["bfloat16"], stored), (found["float32"], 2 * stored)):
        assert model < sizes["held"] < model + BESIDE_BYTES, "what is kept is the model, and no file with it"
        assert sizes["peak"] < model + shard + BESIDE_BYTES
        assert shard + BESIDE_BYTES < stored, "reading all files at once would not pass"
