"""How families of models write tool calls.

Sources: the chat templates of LongCat-Flash, Qwen2.5, Qwen3 and Qwen3-Coder, Hermes 2 Pro and Llama 3.1, and the parsers of vLLM,
SGLang and mlx-lm, which read the same forms.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from router.tool_calls.tag_call import TagForm

ParserName = Literal["auto", "longcat", "hermes", "llama3", "none"]
"""`router.tool_parser`: auto asks the model's chat template."""

LONGCAT_TAGS = TagForm(
    name_begin="",
    name_end="",
    key_begin="<longcat_arg_key>",
    key_end="</longcat_arg_key>",
    value_begin="<longcat_arg_value>",
    value_end="</longcat_arg_value>",
    end="</longcat_tool_call>",
    is_end_shared=True,
    wraps_values=False,
)

QWEN_CODER_TAGS = TagForm(
    name_begin="<function=",
    name_end=">",
    key_begin="<parameter=",
    key_end=">",
    value_begin="",
    value_end="</parameter>",
    end="</function>",
    is_end_shared=False,
    wraps_values=True,
)


@dataclass(frozen=True)
class ToolFormat:
    """One family's way. A call is `begin`, then JSON (see json_call) or tags, then `end`; `separator` stands between calls.

    `begins_bare`: an answer that begins with a JSON object may be a call without `begin`, which is then seldom written.
    `writes_tags`: this model was trained to write tags; JSON is read all the same.
    """

    name: str
    begin: str
    end: str
    arguments_key: str = "arguments"
    separator: str = ""
    begins_bare: bool = False
    tags: TagForm | None = None
    writes_tags: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """What may be a single token of the model's vocabulary, and then a special one, which has no text otherwise."""
        tags = self.tags
        inner = (tags.key_begin, tags.key_end, tags.value_begin, tags.value_end) if tags and tags.is_end_shared else ()
        return tuple(marker for marker in (self.begin, self.end, *inner) if marker)

    def write(self, name: str, arguments: Mapping[str, object]) -> str:
        """A call in JSON, as a model writes it: for templates that know no tools."""
        call = json.dumps({"name": name, self.arguments_key: arguments}, ensure_ascii=False)
        return call if self.begins_bare else f"{self.begin}\n{call}\n{self.end}"


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", separator="\n", tags=QWEN_CODER_TAGS)
QWEN_CODER = ToolFormat("hermes", "<tool_call>", "</tool_call>", separator="\n", tags=QWEN_CODER_TAGS, writes_tags=True)
LONGCAT = ToolFormat("longcat", "<longcat_tool_call>", "</longcat_tool_call>", tags=LONGCAT_TAGS)
LONGCAT_XML = ToolFormat("longcat", "<longcat_tool_call>", "</longcat_tool_call>", tags=LONGCAT_TAGS, writes_tags=True)
LLAMA3 = ToolFormat("llama3", "<|python_tag|>", "", arguments_key="parameters", separator="; ", begins_bare=True)


def format_of(name: ParserName, chat_template: str) -> ToolFormat | None:
    """The format of that name in the form which the template shows; None where tools are refused.

    Where the template shows none, Hermes': it is what the default system block asks of a model that was trained for no format.
    """
    if name == "none":
        return None
    if name == "longcat" or (name == "auto" and LONGCAT.begin in chat_template):
        return LONGCAT_XML if LONGCAT_TAGS.key_begin in chat_template else LONGCAT
    if name == "llama3" or (name == "auto" and HERMES.begin not in chat_template and _is_llama3(chat_template)):
        return LLAMA3
    return QWEN_CODER if QWEN_CODER_TAGS.name_begin in chat_template else HERMES


def _is_llama3(chat_template: str) -> bool:
    return LLAMA3.begin in chat_template or ('"parameters": ' in chat_template and "<|start_header_id|>" in chat_template)
