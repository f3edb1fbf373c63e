"""One answer in the words of serval.v1."""

from protocol import serval_pb2
from protocol.outcomes import Outcome
from router.answers import Piece
from router.figures import answer_tokens
from router.request import Delta, Request
from router.tool_calls.parser import Piece as Said
from router.tool_calls.parser import ToolCallParser

_REASONS = {Outcome.STOP: serval_pb2.FINISH_REASON_STOP, Outcome.LENGTH: serval_pb2.FINISH_REASON_LENGTH}


class GrpcChoice:
    """`response` says one piece of the answer; the prompt, where it is to come back, goes with the first. `parser` finds tool
    calls in the answer; None: it is text alone."""

    def __init__(self, index: int, request: Request, parser: ToolCallParser | None = None) -> None:
        self._index = index
        self._request = request
        self._parser = parser
        self._has_opened = False

    def response(self, piece: Piece) -> serval_pb2.GenerateResponse:
        delta = Delta() if self._request.spec.is_prompt_only else piece.delta
        response = serval_pb2.GenerateResponse(
            index=self._index,
            token_ids=delta.token_ids,
            text=delta.text if self._parser is None else "",
            logprobs=[info.logprobs for info in delta.logprobs],
        )
        if self._parser is not None:
            said = self._parser.push(delta.text)
            for each in said + self._parser.finish() if piece.is_last else said:
                _say(response, each)
        if not self._has_opened:
            self._has_opened = True
            response.text = (self._request.spec.echo or "") + response.text
            response.prompt_logprobs.extend(self._request.prompt_logprobs)
        if piece.is_last:
            response.finish.CopyFrom(self._finish())
        return response

    def _finish(self) -> serval_pb2.Finish:
        request = self._request
        usage = serval_pb2.Usage(
            prompt_tokens=len(request.spec.prompt),
            completion_tokens=answer_tokens(request),
            cached_tokens=request.cached_tokens,
        )
        return serval_pb2.Finish(reason=self._reason(), usage=usage, figures=request.figures)

    def _reason(self) -> serval_pb2.FinishReason.ValueType:
        assert self._request.end is not None
        outcome = Outcome.LENGTH if self._request.spec.is_prompt_only else self._request.end.outcome
        if outcome is Outcome.STOP and self._parser is not None and self._parser.calls:
            return serval_pb2.FINISH_REASON_TOOL_CALLS
        return _REASONS[outcome]


def _say(response: serval_pb2.GenerateResponse, said: Said) -> None:
    if isinstance(said, str):
        response.text += said
    else:
        response.tool_calls.add(index=said.index, id=said.id, name=said.name, arguments=said.arguments)
