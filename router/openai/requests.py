"""OpenAI's request bodies, exactly as far as they are honoured.

What the API knows and this server does not do is refused by name (router/openai/parse.py), so nothing a client relies on is ignored
in silence.
Source: OpenAI's API reference (chat completions, completions) and, for the sampling extensions, vLLM's and SGLang's.
"""

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import Field, model_validator

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_LOGPROBS, MIN_REPETITION_PENALTY
from router.openai.formats import StructuredFields
from router.openai.messages import GenerationBody, Message, Strict
from router.tool_calls.tools import FunctionTool, Tool, ToolChoice, tool_of

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Text | Tokens | Annotated[list[Text], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
Count = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(Strict):
    include_usage: bool = Field(default=False, description="One more chunk before the end, with the whole call's usage.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is obfuscated.")


class SamplingFields(GenerationBody, StructuredFields, ABC):
    """What both endpoints share. None: the model's default."""

    model: Annotated[str, Field(min_length=1)]
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Answers to each prompt; the one with index i draws with seed + i."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**32)] | None = Field(default=None, description="0 and -1: off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=100)] | None = None
    logit_bias: dict[str, Bias] | None = Field(default=None, description="By token id.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="Requests that share one go to the same workers, where these are otherwise equal."
    )
    user: str | None = Field(default=None, description="As prompt_cache_key, where nothing else names a session.")
    prompt_logprobs: Count | None = Field(default=None, description="Logprobs of the prompt's tokens; not with stream.")

    @model_validator(mode="after")
    def _prompt_logprobs_come_whole(self) -> "SamplingFields":
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest("prompt_logprobs cannot be streamed", "prompt_logprobs")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def answer_limit(self) -> int | None:
        """Tokens to draw at most; None: as many as fit, or the endpoint's default."""
        return self.max_tokens

    @property
    def answer_limit_field(self) -> str:
        """The caller's own name for `answer_limit`."""
        return "max_tokens"

    @property
    @abstractmethod
    def logprobs_count(self) -> int | None:
        """How many likeliest tokens to list beside the chosen one; None for no logprobs."""

    def session(self, given: str) -> str:
        """What the client calls the requests that this one belongs to, empty where it does not say. `given`: in its headers. Who
        the user is says least: it may be one application's name for all that it asks."""
        return self.prompt_cache_key or given or self.user or ""

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatMessages(Strict):
    messages: Annotated[list[Message], Field(min_length=1)]


class ChatRequest(SamplingFields, ChatMessages):
    """The body of /v1/chat/completions."""

    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def functions(self) -> list[Tool]:
        """Raises InvalidRequest naming the tool that is wrong."""
        return [tool_of(tool.function, f"tools[{index}].function") for index, tool in enumerate(self.tools or ())]

    @property
    def answer_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def answer_limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def logprobs_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        return self


class CompletionRequest(SamplingFields):
    """The body of /v1/completions. Several prompts are a batch; choice i belongs to prompt i // n."""

    prompt: Prompt
    logprobs: Count | None = None
    echo: bool | None = Field(default=None, description="The prompt's text comes before the answer; its logprobs too.")
    best_of: int | None = Field(default=None, description="Only the value of n is supported.")

    @property
    def answer_limit(self) -> int | None:
        return 1 if self.is_prompt_only else self.max_tokens

    @property
    def logprobs_count(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt of the batch."""
        prompt = self.prompt
        is_batch = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        return list(prompt) if is_batch else [prompt]  # type: ignore[arg-type, list-item]

    @property
    def is_prompt_only(self) -> bool:
        """No answer is wanted. A token has to be drawn all the same."""
        return bool(self.echo) and self.max_tokens == 0

    @model_validator(mode="after")
    def _best_of_is_n(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest("best_of is not supported, unless it equals n", "best_of")
        return self
