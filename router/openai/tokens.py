"""/tokenize and /detokenize, in vLLM's shapes.

Source: vLLM's documentation (tokenizer API).
"""

from typing import Annotated

import orjson
from fastapi import Request as HttpRequest
from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from starlette.responses import Response

from protocol.errors import InvalidRequest
from router.admission import Admission
from router.http.answer import RawResponse
from router.http.door import Door, Visit
from router.model import ModelInfo
from router.openai.messages import Message, Strict
from router.openai.parse import parse
from router.openai.requests import TokenId
from router.text.tokenizer import TextTokenizer

_PROMPT: JsonDict = {"prompt": {"type": "string"}, "messages": {"type": "null"}}
_MESSAGES: JsonDict = {"messages": {"type": "array"}, "prompt": {"type": "null"}, "add_special_tokens": {"enum": [False, None]}}


class TokenizeRequest(Strict):
    """Either a prompt or messages."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["prompt"], "properties": _PROMPT}, {"required": ["messages"], "properties": _MESSAGES}]
        }
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(default=None, description="Default true; messages' template writes its own.")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("prompt or messages must be given, and not both", "prompt")
        if self.messages and self.add_special_tokens:
            raise InvalidRequest("add_special_tokens: the chat template writes its own", "add_special_tokens")
        return self


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[TokenId]


class TokensFront:
    """Answers both endpoints; no worker is asked."""

    def __init__(self, door: Door, model: ModelInfo, tokenizer: TextTokenizer, admission: Admission) -> None:
        self._door = door
        self._model = model
        self._tokenizer = tokenizer
        self._admission = admission

    async def tokenize(self, http: HttpRequest) -> Response:
        return await self._door.let_in(http, self._tokenize)

    async def detokenize(self, http: HttpRequest) -> Response:
        return await self._door.let_in(http, self._detokenize)

    async def _tokenize(self, visit: Visit) -> Response:
        asked = parse(TokenizeRequest, await self._door.body(visit))
        self._admission.check_model(asked.model)
        limit = self._model.max_model_len
        if asked.messages is not None:
            tokens = await self._admission.chat_tokens([message.for_template() for message in asked.messages])
        else:
            tokens = await self._tokenizer.encode(asked.prompt or "", limit, asked.add_special_tokens is not False)
        names = [self._tokenizer.backend.id_to_token(token) for token in tokens] if asked.return_token_strs else None
        content = {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": names}
        return RawResponse(200, orjson.dumps(content), visit.headers)

    async def _detokenize(self, visit: Visit) -> Response:
        asked = parse(DetokenizeRequest, await self._door.body(visit))
        self._admission.check_model(asked.model)
        self._admission.check_tokens(asked.tokens, "tokens")
        return RawResponse(200, orjson.dumps({"prompt": self._tokenizer.decode(asked.tokens)}), visit.headers)
