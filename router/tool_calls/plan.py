"""What a request's tools mean: for its prompt, for the grammar its answer keeps to, and for how that answer is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import InvalidRequest
from router.structured_output import Structure, checked, grammar_of
from router.text.tokenizer import TextTokenizer
from router.tool_calls.formats import ParserName, ToolFormat
from router.tool_calls.grammar import grammar_for
from router.tool_calls.parser import ToolCallParser
from router.tool_calls.tools import NamedToolChoice, Tool, ToolChoice, check_tools


@dataclass(frozen=True)
class ToolPlan:
    """One request's. `tools` go to the chat template and `grammar` to the workers (empty: the answer is free). `shown_tokens` are
    special tokens which have text in this answer, because calls are written with them."""

    tools: tuple[Tool, ...] = ()
    grammar: str = ""
    shown_tokens: Mapping[int, str] = field(default_factory=dict)
    form: ToolFormat | None = None

    def parser(self) -> ToolCallParser | None:
        """A new one, for one answer; None where the answer is text alone."""
        return ToolCallParser(self.form, self.tools) if self.form is not None and self.tools else None


NO_TOOLS = ToolPlan()


class ToolCalling:
    """The model's way with tools. One per router."""

    def __init__(self, form: ToolFormat | None, token_ids: Mapping[str, int]) -> None:
        """`form`: None refuses tools. `token_ids`: the form's markers that are tokens of the vocabulary."""
        self.form = form
        self._token_ids = dict(token_ids)
        self._shown = {token_id: marker for marker, token_id in token_ids.items()}

    @classmethod
    def of_model(cls, setting: ParserName, tokenizer: TextTokenizer) -> "ToolCalling":
        """`setting` is `router.tool_parser`."""
        form = tokenizer.tool_format(setting)
        return cls(form, tokenizer.ids_of(form.markers) if form is not None else {})

    async def plan(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice | None = None,
        parallel: bool | None = None,
        answer: Structure | None = None,
    ) -> ToolPlan:
        """`answer` is what text must be where no call is made. With tool_choice none the model is not told of its tools: nothing
        else keeps it from calling them. Raises InvalidRequest naming the field."""
        check_tools(tools)
        named = choice.function.name if isinstance(choice, NamedToolChoice) else ""
        mode = "named" if named else choice or "auto"
        if not tools and mode in ("named", "required"):
            raise InvalidRequest("tool_choice asks for a call, and there are no tools", "tool_choice")
        if named and named not in {tool.name for tool in tools}:
            raise InvalidRequest(f"tool_choice: there is no tool named {named!r}", "tool_choice")
        if not tools or mode == "none":
            return NO_TOOLS
        if self.form is None:
            raise InvalidRequest("tools are not supported by this server (router.tool_parser is none)", "tools")
        for tool in tools:
            if tool.strict or mode == "required" or tool.name == named:
                await grammar_of(Structure("json_schema", tool.parameters, f"{tool.place}.parameters"))
        several = parallel is not False and not named  # a name asks for one call of it, as in OpenAI's API
        grammar = grammar_for(self.form, tools, named or str(mode), several, self._token_ids, _schema_of(answer, str(mode)))
        return ToolPlan(tuple(tools), await checked(grammar, "tools") if grammar else "", self._shown, self.form)


def _schema_of(answer: Structure | None, mode: str) -> Mapping[str, Any] | bool | None:
    """The schema of an answer without calls. A forced call leaves no room for one."""
    if answer is None:
        return None
    if mode != "auto":
        raise InvalidRequest(f"{answer.field} cannot be combined with a tool_choice that asks for a call", answer.field)
    if answer.kind != "json_schema" or isinstance(answer.value, str):
        raise InvalidRequest(f"{answer.field} cannot be combined with tools; a JSON schema as an object can", answer.field)
    return answer.value  # type: ignore[no-any-return]
