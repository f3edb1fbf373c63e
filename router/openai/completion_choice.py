"""One answer in the words of /v1/completions, with the prompt before it where it is to be echoed."""

import codecs
from collections.abc import Sequence

from protocol.serval_pb2 import TokenLogprob, TokenLogprobs
from router.openai.chat_choice import finish_reason
from router.openai.prompt_logprobs import prompt_logprobs_of
from router.openai.replies import Json
from router.request import Delta, Request, TokenInfo
from router.text.tokenizer import TextTokenizer


class CompletionChoice:
    """See router/openai/replies.py's Choice.

    Logprobs are lists of equal length, one entry per token: with echo the prompt's come first, and the very first token, which
    nothing precedes, has none. `text_offset` counts characters of the choice's text. `prompt_logprobs`: how many likeliest tokens
    to list in place of each of the prompt's; None: no such list.
    """

    def __init__(self, index: int, request: Request, tokenizer: TextTokenizer, prompt_logprobs: int | None = None) -> None:
        self._index = index
        self._request = request
        self._tokenizer = tokenizer
        self._prompt_logprobs = prompt_logprobs
        self._echo = request.spec.echo or ""
        self._has_opened = False

    def delta(self, delta: Delta) -> list[Json]:
        if self._request.spec.is_prompt_only:
            return self._opening()
        return [*self._opening(), self._chunk(delta.text, self._logprobs(self._answer_tokens(delta)), None)]

    def end(self) -> list[Json]:
        return [*self._opening(), self._chunk("", None, self._finish_reason())]

    def whole(self, delta: Delta) -> Json:
        shown = Delta() if self._request.spec.is_prompt_only else delta
        tokens = [*self._prompt_tokens(), *self._answer_tokens(shown)]
        logprobs = self._logprobs(tokens, begins_prompt=bool(self._echo))
        choice = self._chunk(self._echo + shown.text, logprobs, self._finish_reason())
        if self._prompt_logprobs is not None:
            token_bytes = self._tokenizer.token_bytes
            choice["prompt_logprobs"] = prompt_logprobs_of(self._request, self._prompt_logprobs, token_bytes)
        return choice

    def _opening(self) -> list[Json]:
        if self._has_opened or not self._echo:
            return []
        self._has_opened = True
        return [self._chunk(self._echo, self._logprobs(self._prompt_tokens(), begins_prompt=True), None)]

    def _finish_reason(self) -> str:
        return "length" if self._request.spec.is_prompt_only else finish_reason(self._request)

    def _chunk(self, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _prompt_tokens(self) -> list[TokenInfo]:
        if not self._echo or self._request.spec.sampling.logprobs is None:
            return []
        decoder, offset = codecs.getincrementaldecoder("utf-8")("replace"), 0
        infos = []
        for token_id, logprobs in zip(self._request.spec.prompt, self._request.prompt_logprobs, strict=True):
            infos.append(TokenInfo(logprobs, offset))
            offset += len(decoder.decode(self._tokenizer.token_bytes.of(token_id)[1]))
        return infos

    def _answer_tokens(self, delta: Delta) -> list[TokenInfo]:
        return [TokenInfo(info.logprobs, len(self._echo) + info.text_offset) for info in delta.logprobs]

    def _logprobs(self, tokens: Sequence[TokenInfo], begins_prompt: bool = False) -> Json | None:
        if self._request.spec.sampling.logprobs is None or not tokens:
            return None
        chosen: list[float | None] = [info.logprobs.chosen.logprob for info in tokens]
        top: list[Json | None] = [self._top(info.logprobs) for info in tokens]
        if begins_prompt:
            chosen[0] = top[0] = None
        return {
            "text_offset": [info.text_offset for info in tokens],
            "token_logprobs": chosen,
            "tokens": [self._text(info.logprobs.chosen) for info in tokens],
            "top_logprobs": top,
        }

    def _top(self, logprobs: TokenLogprobs) -> Json:
        """With the chosen token, as OpenAI lists it. Of tokens with the same text the likeliest counts."""
        top: Json = {}
        for token in (*logprobs.top[: self._request.spec.sampling.logprobs], logprobs.chosen):
            top.setdefault(self._text(token), token.logprob)
        return top

    def _text(self, token: TokenLogprob) -> str:
        return self._tokenizer.token_bytes.of(token.token_id)[0]
