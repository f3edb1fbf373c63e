"""Experts and 8-bit matrices on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from gpu_support import error, load, logits, sequence
from safetensors.torch import load_file, save_file

from engine.batch import Span
from engine.eight_bit import EightBitLinear, EightBitMatrix, multiplies, quantised
from engine.models.expert_tally import ExpertTally
from engine.models.moe import ExpertWeights, MixtureOfExperts, RouterWeights
from engine.tiny_longcat import write_tiny_longcat

REAL, ZERO, TOPK, HIDDEN, INNER = 16, 8, 4, 256, 128


def mixture(device: torch.device, dtype: torch.dtype, tally: ExpertTally | None = None) -> MixtureOfExperts:
    drawn = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=drawn) / shape[-1] ** 0.5).bfloat16().to(device)

    bias = torch.zeros(REAL + ZERO, device=device)
    router = RouterWeights(random(REAL + ZERO, HIDDEN).float(), bias, TOPK, 6.0)
    experts = ExpertWeights(random(REAL, 2 * INNER, HIDDEN).to(dtype), random(REAL, HIDDEN, INNER).to(dtype))
    return MixtureOfExperts(router, experts, tally)


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_as_on_the_cpu(gpu: torch.device, tokens: int) -> None:
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    tally = ExpertTally(gpu)
    ours = mixture(gpu, torch.bfloat16, tally)(x.to(gpu)).float().cpu()
    layer = mixture(torch.device("cpu"), torch.float32)
    expected = layer(x.float())
    # A token whose router is torn between two experts may choose the other here: none but such may differ.
    differs = (ours - expected).norm(dim=1) > 0.02 * expected.norm(dim=1)
    assert differs.float().mean() <= 0.02
    work = tally.read()
    assert work.real + work.zero == tokens * TOPK
    assert work.product_rows == work.real


def test_nothing_waits_for_the_device(gpu: torch.device) -> None:
    if torch.cuda.get_device_capability(gpu) not in ((9, 0), (10, 0)):
        pytest.skip("torch's grouped product itself looks where experts end, but for compute capabilities 9.0 and 10.0")
    layer, x = mixture(gpu, torch.bfloat16, ExpertTally(gpu)), torch.randn(9, HIDDEN, device=gpu).bfloat16()
    before = layer(x)
    torch.cuda.synchronize(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        after = layer(x)  # raises where something waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(after, before)


def eight_bit(rows: int, columns: int, device: torch.device) -> EightBitMatrix:
    drawn = torch.Generator().manual_seed(2)
    blocks = torch.randn(rows // 128, 128, columns // 128, 128, generator=drawn) * torch.logspace(-2, 1, columns // 128).view(
        -1, 1
    )
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).view(rows, columns)
    return EightBitMatrix(values.to(device), scales.to(device))


@pytest.mark.parametrize(("tokens", "columns"), [(1, 384), (5, 640), (64, 1024), (300, 512)])
def test_the_product_in_8_bits(gpu: torch.device, tokens: int, columns: int) -> None:
    weight = eight_bit(256, columns, gpu)
    if not multiplies(weight):
        pytest.skip("torch multiplies block-scaled 8-bit matrices on compute capability 9.0 with CUDA 12.9 or newer alone")
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(3)).bfloat16().to(gpu)
    values, scales = quantised(x)
    rounded = (values.float().view(tokens, -1, 128) * scales.unsqueeze(-1)).flatten(1)
    expected = rounded.double() @ weight.widened(torch.float32).double().t()
    ours = EightBitLinear(weight)(x).double()
    assert (ours - expected).norm() < 0.005 * expected.norm()


def test_a_checkpoint_kept_in_8_bits(tmp_path: Path, gpu: torch.device) -> None:
    """With blocks for which there is no product: widened for each, so the same numbers as when they are widened at once."""
    folder = write_tiny_longcat(tmp_path, dtype=torch.bfloat16)
    weight_map = {}
    for file in folder.glob("*.safetensors"):
        stored = {}
        for name, tensor in load_file(file).items():
            if tensor.dim() == 2 and ("experts" in name or "mlps" in name):
                blocks = tensor.float().view(tensor.shape[0] // 16, 16, tensor.shape[1] // 16, 16)
                stored[f"{name}_scale_inv"] = scales = blocks.abs().amax(dim=(1, 3)) / 448
                stored[name] = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).view(tensor.shape)
            else:
                stored[name] = tensor
        save_file(stored, file)
        weight_map |= dict.fromkeys(stored, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    prompt = list(range(4, 204))
    results = []
    for device, dtype, fp8_weights in (
        (gpu.type, "bfloat16", "keep"),
        (gpu.type, "bfloat16", "widen"),
        ("cpu", "float32", "widen"),
    ):
        engine = load(folder, device, dtype, fp8_weights=fp8_weights)
        results.append(logits(engine, Span(sequence(engine, prompt), 0, len(prompt))))
    kept, widened, exact = results
    assert torch.equal(kept, widened)
    assert error(kept, exact) < 0.1
