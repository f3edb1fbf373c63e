"""A LongCat-Flash checkpoint's chat: by its own template where it has one, else by the family's; tools and the end likewise."""

import json
from pathlib import Path

import pytest

from engine.models.registry import read_model_config
from engine.tiny_longcat import EOS_TOKEN_ID, LITE_CONFIG, write_tiny_longcat
from router.text.chat_template import ChatTemplate
from router.text.tokenizer import TextTokenizer
from router.tool_calls.formats import LONGCAT, LONGCAT_XML
from router.tool_calls.tools import Tool

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
]
ADD = Tool("add", "Adds.", {"type": "object"})


def without_template(folder: Path) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("architecture", ["LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM"])
def test_the_familys_template(tmp_path: Path, architecture: str) -> None:
    folder = without_template(write_tiny_longcat(tmp_path, raw=LITE_CONFIG))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    template = ChatTemplate.from_folder(folder)
    assert template is not None and template.knows_tools
    assert template.render(CONVERSATION) == (
        "SYSTEM:Be brief. [Round 0] USER:One? ASSISTANT:1</longcat_s> [Round 1] USER:Two? ASSISTANT:"
    )
    told = template.render(CONVERSATION[1:2], [ADD])
    assert told.startswith("## Tools\n") and '"name": "add"' in told
    assert told.endswith("\n\n## Messages\n[Round 0] USER:One? ASSISTANT:")
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.tool_format("auto") is LONGCAT
    assert tokenizer.ids_of(["</longcat_s>"]) == {"</longcat_s>": EOS_TOKEN_ID}


def test_a_checkpoints_own_comes_first(tmp_path: Path) -> None:
    """Its tool calls too: newer ones write tags."""
    folder = write_tiny_longcat(tmp_path)
    own = "{{ messages[-1].content }}{% if tools %}<longcat_tool_call>{{ tools }}<longcat_arg_key>{% endif %} /think_on ASSISTANT:"
    (folder / "chat_template.jinja").write_text(own)
    template = ChatTemplate.from_folder(folder)
    assert template is not None
    assert template.render(CONVERSATION) == "Two? /think_on ASSISTANT:"
    assert TextTokenizer.from_folder(folder).tool_format("auto") is LONGCAT_XML


def test_no_other_family_gets_it(tmp_path: Path) -> None:
    folder = without_template(write_tiny_longcat(tmp_path))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert ChatTemplate.from_folder(folder) is None


@pytest.mark.parametrize(("told", "expected"), [({"eos_token_id": [2, 7]}, {2, 7}), ({}, {2})])
def test_the_token_that_ends_an_answer(tmp_path: Path, told: dict[str, object], expected: set[int]) -> None:
    """What the checkpoint says, else the family's."""
    folder = write_tiny_longcat(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(told))
    assert read_model_config(folder).eos_token_ids == frozenset(expected)
