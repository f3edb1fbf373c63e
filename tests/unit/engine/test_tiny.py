"""The shipped tiny model: deterministic, and loadable by transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.tiny import EOS_TOKEN_ID, write_tiny_llama


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, again, other = (write_tiny_llama(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_every_text_round_trips(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_llama(tmp_path))
    text = "Grüße, 世界! 1234\n\t\x00 🙂"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == EOS_TOKEN_ID
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@torch.inference_mode()
def test_answer_depends_on_far_tokens(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_llama(tmp_path))
    prompt = torch.randint(0, 256, (1, 300), generator=torch.Generator().manual_seed(0))
    changed = prompt.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 256
    difference = (model(prompt).logits[0, -1] - model(changed).logits[0, -1]).abs().max()
    assert difference > 1e-3


def test_vocabulary_must_hold_every_byte(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        write_tiny_llama(tmp_path, vocab_size=100)
