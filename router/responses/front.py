"""/v1/responses: OpenAI's Responses API on the same way as chat completions."""

from fastapi import Request as HttpRequest
from starlette.responses import Response

from protocol.errors import InvalidRequest
from router.admission import Admission
from router.answers import Answers
from router.calls import Call
from router.openai.front import Endpoint, OpenAiFront
from router.openai.replies import Reply
from router.responses.reply import ResponsesReply
from router.responses.requests import ResponsesRequest, in_own_words
from router.text.tokenizer import TextTokenizer


class ResponsesFront:
    """Keeps nothing between calls: a conversation comes whole with every request."""

    def __init__(self, front: OpenAiFront, tokenizer: TextTokenizer, admission: Admission) -> None:
        self._front = front
        self._token_bytes = tokenizer.token_bytes
        self._admission = admission
        self._endpoint = Endpoint(ResponsesRequest, self._admit, self._reply)

    async def create(self, http: HttpRequest) -> Response:
        return await self._front.answer(http, self._endpoint)

    async def _admit(self, asked: ResponsesRequest, session: str) -> Call:
        try:
            return await self._admission.chat(asked.chat(), session)
        except InvalidRequest as error:
            raise in_own_words(error) from error

    def _reply(self, asked: ResponsesRequest, call: Call, answers: Answers) -> Reply:
        return ResponsesReply(asked, call, answers, self._token_bytes)
