"""Reading a model's folder: limits, defaults, chat template, tokenizer; held against transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ConfigError, InvalidRequest
from router.model import ModelInfo
from router.text.chat_template import ChatTemplate
from router.text.tokenizer import TextTokenizer
from tests.integration.router_support import CONTEXT, EOS, write_model_folder

MESSAGES = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "naïve 日本 😀?\n"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path)


def test_the_router_imports_neither_torch_nor_transformers() -> None:
    script = "import sys, router.router; print(sorted({'torch', 'transformers', 'engine', 'nixl_cu12'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_limits_and_end_tokens_come_from_the_folder(folder: Path) -> None:
    model = ModelInfo.from_folder("m", folder)
    eos = TextTokenizer.from_folder(folder).backend.token_to_id(EOS)
    assert (model.max_model_len, model.eos_token_ids, model.default_max_tokens) == (CONTEXT, {eos}, None)
    assert model.defaults.temperature == 1.0
    assert ModelInfo.from_folder("m", folder, max_model_len=64).max_model_len == 64


def test_sampling_defaults_come_from_generation_config(tmp_path: Path) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 33}
    model = ModelInfo.from_folder("m", write_model_folder(tmp_path, **defaults))
    assert (model.defaults.temperature, model.defaults.top_p, model.defaults.top_k) == (0.6, 0.9, 20)
    assert (model.defaults.repetition_penalty, model.default_max_tokens) == (1.1, 33)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", "{}", "no context length"),
        ("config.json", '{"max_position_embeddings": 8}', "no vocab_size"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("chat_template.jinja", "{% if %}", "does not compile"),
    ],
)
def test_a_wrong_folder_is_named(folder: Path, name: str, content: str | None, says: str) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        ModelInfo.from_folder("m", folder)
        TextTokenizer.from_folder(folder)


async def test_tokens_and_chat_template_agree_with_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    ours = TextTokenizer.from_folder(folder)
    for text in ("", "the stop", "naïve 日本 😀\n\t", f"a{EOS}b"):
        assert await ours.encode(text, 1000) == theirs.encode(text)
    rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate.from_folder(folder)
    assert template is not None
    assert template.render(MESSAGES) == rendered
    assert await ours.encode_chat(MESSAGES, 1000) == theirs.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | trim }}{% endfor %}",
        "{%- for m in messages %}\n  {{- m['role'] | tojson }}\n{% endfor %}{{ messages | tojson(indent=2) }}",
        "{{ eos_token }}{% if add_generation_prompt %}go{% endif %}{{ tools }}",
    ],
)
def test_templates_render_as_in_transformers(folder: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    (folder / "chat_template.jinja").write_text(template)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    ours = ChatTemplate.from_folder(folder)
    assert ours is not None
    assert ours.render(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)


def test_a_template_may_refuse_and_may_not_reach_out(folder: Path) -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        refusing.render(MESSAGES)
    assert caught.value.field == "messages"
    escaping = ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", {})
    with pytest.raises(InvalidRequest):
        escaping.render(MESSAGES)


def test_of_several_templates_the_default_is_used(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ eos_token }}"}]
    file.write_text(json.dumps({"chat_template": several, "eos_token": {"content": "<e>"}}))
    template = ChatTemplate.from_folder(folder)
    assert template is not None
    assert template.render([]) == "<e>"
    file.write_text("{}")
    assert ChatTemplate.from_folder(folder) is None


async def test_a_hopelessly_long_prompt_is_refused_without_tokenising(folder: Path) -> None:
    tokenizer = TextTokenizer.from_folder(folder)
    with pytest.raises(InvalidRequest, match="characters"):
        await tokenizer.encode("x" * 1_000_000, max_tokens=CONTEXT)


async def test_a_long_prompt_is_tokenised_in_a_thread_to_the_same_tokens(folder: Path) -> None:
    text = "the stop ä " * 30
    in_thread = TextTokenizer.from_folder(folder, long_prompt_characters=10)
    assert await in_thread.encode(text, 10_000) == await TextTokenizer.from_folder(folder).encode(text, 10_000)
