"""From a client's words, HTTP's or gRPC's, to a validated Call."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from router.calls import Call
from router.config import RouterConfig
from router.model import ModelInfo
from router.openai.requests import ChatRequest, CompletionRequest, SamplingFields
from router.request import GenerateSpec
from router.structured_output import grammar_of
from router.text.tokenizer import TextTokenizer
from router.tool_calls.plan import NO_TOOLS, ToolCalling, ToolPlan
from router.workers import Membership

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat answer may fill the context."""

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
)


class Admission:
    """Tokenises and checks. Raises InvalidRequest, naming the field, for what can never be served."""

    def __init__(self, config: RouterConfig, model: ModelInfo, tokenizer: TextTokenizer, members: Membership) -> None:
        self._max_answers = config.max_answers_per_call
        self._members = members
        self._model = model
        self._tokenizer = tokenizer
        self.tools = ToolCalling.of_model(config.tool_parser, tokenizer)

    async def chat(self, request: ChatRequest, session: str = "") -> Call:
        """`session`: what the headers call several requests that belong together."""
        sampling = self._sampling(request)
        n = self.count(request.n, 1)
        plan = await self.tools.plan(request.functions, request.tool_choice, request.parallel_tool_calls, request.structure)
        grammar = plan.grammar if plan.tools else await grammar_of(request.structure)
        messages = [message.for_template() for message in request.messages]
        prompt = await self.chat_tokens(messages, plan)
        spec = GenerateSpec(
            tuple(prompt),
            replace(sampling, grammar=grammar),
            request.stop_strings,
            session=request.session(session),
            shown_tokens=plan.shown_tokens,
        )
        limit, default = request.answer_limit, self._model.default_max_tokens
        return Call((self.fit(spec, "messages", limit, default, request.answer_limit_field),), n, plan)

    async def completion(self, request: CompletionRequest, session: str = "") -> Call:
        """`session`: as for chat."""
        sampling = replace(self._sampling(request), grammar=await grammar_of(request.structure))
        if request.echo and request.logprobs is not None:
            sampling = replace(sampling, prompt_logprobs=max(request.logprobs, sampling.prompt_logprobs or 0))
        n = self.count(request.n, len(request.prompts))
        specs = []
        for given in request.prompts:
            prompt = await self.tokens(given, "prompt")
            spec = GenerateSpec(
                tuple(prompt),
                sampling,
                request.stop_strings,
                is_prompt_only=request.is_prompt_only,
                session=request.session(session),
            )
            if request.echo:
                spec = replace(spec, echo=given if isinstance(given, str) else self._tokenizer.decode(prompt))
            specs.append(self.fit(spec, "prompt", request.answer_limit, COMPLETION_MAX_TOKENS))
        return Call(tuple(specs), n)

    async def chat_tokens(self, messages: Sequence[Mapping[str, Any]], plan: ToolPlan = NO_TOOLS) -> list[int]:
        """The chat template's tokens; it tells the model of the tools."""
        return await self._tokenizer.encode_chat(messages, self._model.max_model_len, plan.tools, self.tools.form)

    async def tokens(self, prompt: str | Sequence[int], field: str) -> list[int]:
        """A prompt's tokens, text or tokens already."""
        if not prompt:
            raise InvalidRequest(f"{field} is empty", field)
        if isinstance(prompt, str):
            return await self._tokenizer.encode(prompt, self._model.max_model_len)
        self.check_tokens(prompt, field)
        return list(prompt)

    def check_tokens(self, tokens: Sequence[int], field: str) -> None:
        for token_id in tokens:
            if not 0 <= token_id < self._model.vocab_size:
                raise InvalidRequest(f"{field}: token id {token_id} is not in the vocabulary", field)

    def check_model(self, model: str | None) -> None:
        """None or empty is the model served."""
        if model and model != self._model.name:
            raise InvalidRequest(f"the model {model[:64]!r} does not exist; this server has {self._model.name!r}", "model")

    def fit(
        self, spec: GenerateSpec, field: str, asked: int | None, default: int | None, asked_field: str = "max_tokens"
    ) -> GenerateSpec:
        """`spec` with the max_tokens that the context has room for. More than that is refused only when it was `asked` for, as
        `asked_field`."""
        context = self._members.context_limit(self._model.max_model_len)
        tokens = len(spec.prompt)
        room = context - tokens
        if not tokens:
            raise InvalidRequest(f"{field} is empty", field)
        if room < 1:
            raise InvalidRequest(
                f"{field}: {tokens} tokens leave no room for an answer in the context of {context} tokens", field
            )
        if asked is not None and asked > room:
            raise InvalidRequest(
                f"{asked_field}: the context has {context} tokens; {tokens} of the prompt and {asked} of the answer are more",
                asked_field,
            )
        limit = asked if asked is not None else default
        sampling = replace(spec.sampling, max_tokens=min(room if limit is None else limit, room))
        sampling.validate(self._model.vocab_size)
        return replace(spec, sampling=sampling)

    def count(self, n: int | None, prompts: int) -> int:
        """Answers to each of so many prompts; None and 0 are 1."""
        count = n or 1
        if count * prompts > self._max_answers:
            field = "n" if count > 1 else "prompt"
            raise InvalidRequest(
                f"{field}: {count * prompts} answers in one call; at most {self._max_answers} are drawn", field
            )
        return count

    def _sampling(self, request: SamplingFields) -> SamplingParams:
        """Everything but the grammar and the final max_tokens; checked, so that bad input costs no tokenisation."""
        given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
        if given.get("top_k") == -1:  # vLLM's word for "off"
            given["top_k"] = 0
        sampling = replace(
            self._model.defaults,
            **given,
            logit_bias=_logit_bias(request.logit_bias or {}),
            seed=drawn_seed(request.seed),
            logprobs=request.logprobs_count,
            stop_token_ids=tuple(request.stop_token_ids or ()),
            max_tokens=self._model.max_model_len if request.answer_limit is None else request.answer_limit,
            prompt_logprobs=request.prompt_logprobs,
        )
        _validate(sampling, self._model.vocab_size, request.answer_limit_field)
        self.check_model(request.model)
        return sampling


def drawn_seed(asked: int | None) -> int:
    """Drawn where the client gave none, so that a request which goes on at another worker stays itself. Negative ones are seeds
    to OpenAI's clients."""
    return secrets.randbits(63) if asked is None else asked % 2**63


def _validate(sampling: SamplingParams, vocab_size: int, answer_limit_field: str) -> None:
    """As SamplingParams does it, in the caller's words."""
    try:
        sampling.validate(vocab_size)
    except InvalidRequest as error:
        if answer_limit_field == "max_tokens":
            raise
        field = answer_limit_field if error.field == "max_tokens" else error.field
        raise InvalidRequest(str(error).replace("max_tokens", answer_limit_field), field) from error


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit()):
            raise InvalidRequest(f"logit_bias: {key[:32]!r} is not a token id", "logit_bias")
        bias[int(key)] = value
    return bias
