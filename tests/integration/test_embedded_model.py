"""The embedded model: converted once, the same weights and tokens as the reference implementations, and it answers."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from protocol.errors import ConfigError
from serving import embedded_model as module
from serving.embedded_model import convert, embedded_model, installed_gguf
from serving.model_folder import MODEL_NAME


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cache") / MODEL_NAME
    convert(installed_gguf(), target)
    return target


@pytest.mark.long
def test_weights_equal_those_of_transformers_own_gguf_import(folder: Path) -> None:
    gguf = installed_gguf()
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).state_dict()
    ours = load_file(folder / "model.safetensors")
    assert set(reference) - set(ours) == {"lm_head.weight"}  # tied
    assert set(ours) <= set(reference)
    different = [name for name, values in ours.items() if not torch.equal(values, reference[name].to(torch.bfloat16))]
    assert different == []


def test_it_answers_through_transformers(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("v1.25", ["v", "1", ".", "2", "5"]),
        ("Hello world", ["Hello", "Ġworld"]),
        ("I'll go", ["I", "'ll", "Ġgo"]),
        ("<|im_start|>user\n", ["<|im_start|>", "user", "Ċ"]),
    ],
)
def test_pieces(folder: Path, text: str, pieces: list[str]) -> None:
    assert AutoTokenizer.from_pretrained(folder).tokenize(text) == pieces


@pytest.mark.parametrize("text", ["", " ", "naïve café 日本語 🙂", "a\n\n\tb  c", "x = [1, 22, 333]", "\u00a0\u2028", "\x00"])
def test_text_survives_a_round_trip(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_chat_template_adds_the_default_system_message_only_when_there_is_none(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(own, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "SmolLM" in tokenizer.apply_chat_template(own[1:], tokenize=False)


def test_progress_reaches_the_end_and_an_existing_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVAL_CACHE", str(tmp_path))
    reports: list[tuple[int, int]] = []
    folder = embedded_model(lambda _, done, total: reports.append((done, total)))
    assert reports[-1] == (272, 272)
    assert json.loads((folder / "config.json").read_text())["rms_norm_eps"] == 1e-05
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded_model() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_NAME]


@pytest.mark.long
def test_two_processes_at_once_end_with_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVAL_CACHE", str(tmp_path))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=embedded_model) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=90)
        assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_NAME]
    assert len(load_file(tmp_path / MODEL_NAME / "model.safetensors")) == 272


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        convert(installed_gguf(), tmp_path / "cache" / MODEL_NAME, stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_package_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVAL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"^model: .*--model DIR$"):
        embedded_model()
