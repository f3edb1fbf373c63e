"""What the floor of a decode step counts."""

import torch

from benchmarks.longcat_decode_floor import Place, RandomWeights, chat_like, copy_bytes_per_s, measure, weights_read
from engine.config import EngineConfig
from engine.models.blueprint import count_parameters
from engine.models.registry import build_model

CPU = Place(torch.device("cpu"), torch.float32)


def test_a_layer_of_full_size_is_one_of_chats() -> None:
    around = 2 * 131072 * 6144 + 6144  # embedding, head, final norm
    parameters = count_parameters(chat_like(6144, 1, 512, 131072))
    assert round((28 * (parameters.total - around) + around) / 1e9, 2) == 560.66


def test_one_token_reads_what_it_activates_and_many_read_all() -> None:
    config = chat_like(96, 2, 16, 40)
    parameters = count_parameters(config)
    assert weights_read(config, 1) == parameters.activated_mean
    everything = parameters.total - config.vocab_size * config.hidden_size
    assert weights_read(config, 2) < weights_read(config, 4) < everything
    assert weights_read(config, 1000) == everything


def test_a_step_is_measured_against_what_it_reads() -> None:
    config = chat_like(96, 1, 16, 40)
    weights = RandomWeights(CPU.device, CPU.dtype)
    with torch.inference_mode():
        model = build_model(config, weights, EngineConfig(), dtype=CPU.dtype, device=CPU.device, max_model_len=40)
        measured = measure(model, config, 3, 40, 2, 1e9, CPU)
    assert measured.kv_bytes == 3 * 40 * 2 * 576 * 4
    assert measured.weight_bytes == weights_read(config, 3) * 4
    assert measured.floor_s == (measured.kv_bytes + measured.weight_bytes) / 1e9
    assert len(measured.step_s) == 2 and measured.ratio > 0


def test_bandwidth_is_measured() -> None:
    assert 1e8 < copy_bytes_per_s(CPU, 8 << 20) < 1e13
