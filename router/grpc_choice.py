"""One answer in the words of serval.v1."""

from protocol import serval_pb2
from protocol.outcomes import Outcome
from router.answers import Piece
from router.figures import answer_tokens
from router.request import Delta, Request

_REASONS = {Outcome.STOP: serval_pb2.FINISH_REASON_STOP, Outcome.LENGTH: serval_pb2.FINISH_REASON_LENGTH}


class GrpcChoice:
    """`response` says one piece of the answer; the prompt, where it is to come back, goes with the first."""

    def __init__(self, index: int, request: Request) -> None:
        self._index = index
        self._request = request
        self._has_opened = False

    def response(self, piece: Piece) -> serval_pb2.GenerateResponse:
        delta = Delta() if self._request.spec.is_prompt_only else piece.delta
        response = serval_pb2.GenerateResponse(
            index=self._index,
            token_ids=delta.token_ids,
            text=delta.text,
            logprobs=[info.logprobs for info in delta.logprobs],
        )
        if not self._has_opened:
            self._has_opened = True
            response.text = (self._request.spec.echo or "") + response.text
            response.prompt_logprobs.extend(self._request.prompt_logprobs)
        if piece.is_last:
            response.finish.CopyFrom(self._finish())
        return response

    def _finish(self) -> serval_pb2.Finish:
        request = self._request
        assert request.end is not None
        usage = serval_pb2.Usage(
            prompt_tokens=len(request.spec.prompt),
            completion_tokens=answer_tokens(request),
            cached_tokens=request.cached_tokens,
        )
        reason = serval_pb2.FINISH_REASON_LENGTH if request.spec.is_prompt_only else _REASONS[request.end.outcome]
        return serval_pb2.Finish(reason=reason, usage=usage, figures=request.figures)
