"""What a client may ask its answer to be: OpenAI's response_format, and vLLM's and SGLang's words for the same.

Source: OpenAI's API reference (structured outputs); vLLM's documentation (structured outputs; `guided_*` are its older names);
SGLang's documentation (`regex`, `ebnf`).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from protocol.errors import InvalidRequest
from router.openai.messages import Strict
from router.structured_output import Kind, Structure

JsonSchema = dict[str, Any] | bool
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class JsonSchemaFormat(Strict):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, serialize_by_alias=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: JsonSchema | None = Field(default=None, alias="schema", description="None: any JSON object.")
    strict: bool | None = Field(default=None, description="Answers are held to the schema either way.")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Strict):
    """vLLM's; exactly one of them."""

    json_schema: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None


class StructuredFields(Strict):
    """At most one of these."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = Field(default=None, description="Lark or GBNF.")
    regex: str | None = None
    ebnf: str | None = Field(default=None, description="GBNF or Lark.")

    @property
    def structure(self) -> Structure | None:
        """What the answer must be; None: any text. Raises InvalidRequest where several are asked for."""
        outputs = self.structured_outputs or StructuredOutputs()
        asked: list[tuple[str, Kind, Any]] = [
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
            ("regex", "regex", self.regex),
            ("ebnf", "grammar", self.ebnf),
            ("structured_outputs.json", "json_schema", outputs.json_schema),
            ("structured_outputs.json_object", "json_schema", {"type": "object"} if outputs.json_object else None),
            ("structured_outputs.regex", "regex", outputs.regex),
            ("structured_outputs.choice", "choice", outputs.choice),
            ("structured_outputs.grammar", "grammar", outputs.grammar),
            ("response_format", "json_schema", _schema_of(self.response_format)),
        ]
        structures = [Structure(kind, value, field) for field, kind, value in asked if value is not None]
        if len(structures) > 1:
            raise InvalidRequest(f"{structures[1].field} cannot be combined with {structures[0].field}", structures[1].field)
        return structures[0] if structures else None


def _schema_of(asked: ResponseFormat | None) -> JsonSchema | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "object"}
    if asked.json_schema is None:
        raise InvalidRequest("response_format.json_schema is missing", "response_format.json_schema")
    given = asked.json_schema.json_schema
    return {"type": "object"} if given is None else given
