"""The OpenAI HTTP front: one call's way from body to reply."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from fastapi import Request as HttpRequest
from starlette.responses import Response

from protocol.outcomes import Outcome
from router import calls
from router.admission import Admission
from router.answers import Answers
from router.call_trace import CallTrace, Operation, context_of
from router.calls import Call
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.http.answer import AnswerResponse
from router.http.door import Door, Visit
from router.openai.chat_choice import ChatChoice
from router.openai.completion_choice import CompletionChoice
from router.openai.messages import GenerationBody
from router.openai.parse import parse
from router.openai.prompt_logprobs import prompt_logprobs_of
from router.openai.replies import OpenAiReply, Reply
from router.openai.requests import ChatRequest, CompletionRequest
from router.session import session_in
from router.text.tokenizer import TextTokenizer
from telemetry.tracing import OFF, Tracing

AnyAsked = TypeVar("AnyAsked", bound=GenerationBody)


@dataclass(frozen=True)
class Endpoint(Generic[AnyAsked]):
    """What tells one generating endpoint from another: its body, how that, with the session that the headers name, becomes a call,
    and how the answers are said."""

    kind: type[AnyAsked]
    admit: Callable[[AnyAsked, str], Awaitable[Call]]
    reply: Callable[[AnyAsked, Call, Answers], Reply]
    operation: Operation = "chat"


class OpenAiFront:
    """Answers the generating endpoints. A refused body never reaches the dispatcher."""

    def __init__(
        self,
        config: RouterConfig,
        door: Door,
        tokenizer: TextTokenizer,
        admission: Admission,
        dispatcher: Dispatcher,
        tracing: Tracing = OFF,
    ) -> None:
        self._model = config.model
        self._door = door
        self._tokenizer = tokenizer
        self._dispatcher = dispatcher
        self._tracing = tracing
        self._chat = Endpoint(ChatRequest, admission.chat, self._chat_reply)
        self._completion = Endpoint(CompletionRequest, admission.completion, self._completion_reply, "text_completion")

    async def chat(self, http: HttpRequest) -> Response:
        return await self.answer(http, self._chat)

    async def completion(self, http: HttpRequest) -> Response:
        return await self.answer(http, self._completion)

    async def answer(self, http: HttpRequest, endpoint: Endpoint[AnyAsked]) -> Response:
        """Any generating endpoint's response."""

        async def handle(visit: Visit) -> Response:
            body = await self._door.body(visit)
            trace = CallTrace(self._tracing, endpoint.operation, self._model, context_of(http.headers))
            visit.headers.extend((name.encode(), value.encode()) for name, value in trace.headers)
            with trace.accepting():
                self._dispatcher.check_capacity(visit.caller)
                asked = parse(endpoint.kind, body)
                call = await endpoint.admit(asked, session_in(http.headers))
                answers = calls.start(self._dispatcher, call, visit.request_id, visit.caller, trace=trace.context)
            try:
                trace.describe(call, answers, bool(asked.stream))
                reply = endpoint.reply(asked, call, answers)
                explains = http.headers.get("x-serval-debug") == "1"
                return AnswerResponse(reply, partial(self._abandon, trace), bool(asked.stream), visit.headers, explains)
            except Exception:  # a bug; nobody else owns the requests yet
                self._abandon(trace, answers, Outcome.INTERNAL)
                raise

        return await self._door.let_in(http, handle)

    def _chat_reply(self, asked: ChatRequest, call: Call, answers: Answers) -> OpenAiReply:
        token_bytes = self._tokenizer.token_bytes
        choices = [ChatChoice(index, each, token_bytes, call.tools.parser()) for index, each in enumerate(answers.requests)]
        head = self._head("chatcmpl", "chat.completion", answers)

        def tail() -> dict[str, Any]:
            if asked.prompt_logprobs is None:
                return {}
            return {"prompt_logprobs": prompt_logprobs_of(answers.requests[0], asked.prompt_logprobs, token_bytes)}

        return OpenAiReply(answers, call.n, choices, head, "chat.completion.chunk", asked.includes_usage, tail)

    def _completion_reply(self, asked: CompletionRequest, call: Call, answers: Answers) -> OpenAiReply:
        choices = [
            CompletionChoice(index, request, self._tokenizer, asked.prompt_logprobs)
            for index, request in enumerate(answers.requests)
        ]
        head = self._head("cmpl", "text_completion", answers)
        return OpenAiReply(answers, call.n, choices, head, "text_completion", asked.includes_usage)

    def _head(self, prefix: str, kind: str, answers: Answers) -> dict[str, Any]:
        name = f"{prefix}-{answers.requests[0].request_id}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self._model}

    def _abandon(self, trace: CallTrace, answers: Answers, outcome: Outcome = Outcome.CANCELLED) -> None:
        calls.abandon(self._dispatcher, answers, outcome)
        trace.finish(answers)
