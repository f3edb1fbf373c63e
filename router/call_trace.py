"""The span of one client call, over however many requests it became: from its body's arrival to the last byte of its reply.

Conventions: OpenTelemetry's for GenAI. What the client wrote (messages, stop strings, schemas, its key) stays out of it.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

from protocol.errors import ServalError
from protocol.outcomes import Outcome
from router.answers import Answers
from router.calls import Call
from router.figures import figures_of
from telemetry import span_names
from telemetry.tracing import TraceContext, Tracing, Value

Operation = Literal["chat", "text_completion"]

PROVIDER = "serval"


class CallTrace:
    """Ends exactly once: in `accepting`, when no request comes of the call, or else with `finish`. Without tracing all of it does
    nothing."""

    def __init__(self, tracing: Tracing, operation: Operation, model: str, given: TraceContext) -> None:
        """`given`: the context that the client sent."""
        self._span = tracing.start(f"{operation} {model}", given)
        self._answers_per_prompt = 1
        self.context = self._span.context
        if self._span.is_recording:
            self._span.set(
                {
                    span_names.OPERATION: operation,
                    span_names.PROVIDER: PROVIDER,
                    span_names.REQUEST_MODEL: model,
                    span_names.RESPONSE_MODEL: model,
                }
            )

    @property
    def headers(self) -> list[tuple[str, str]]:
        """For the reply: which span it is of."""
        return [("traceparent", self.context.traceparent)] if self.context.traceparent else []

    @contextlib.contextmanager
    def accepting(self) -> Iterator[None]:
        """What is raised within refuses the call."""
        try:
            yield
        except BaseException as error:
            self._span.end(_outcome_of(error))
            raise

    def describe(self, call: Call, answers: Answers, is_stream: bool) -> None:
        """What was asked for, once it was accepted."""
        self._answers_per_prompt = call.n
        if not self._span.is_recording:
            return
        first = answers.requests[0]
        sampling = first.spec.sampling
        attributes: dict[str, Value] = {
            span_names.REQUEST_ID: first.request_id,
            span_names.TENANT: first.caller.tenant,
            span_names.REQUEST_STREAM: is_stream,
            span_names.REQUEST_CHOICES: len(answers.requests),
            span_names.REQUEST_MAX_TOKENS: sampling.max_tokens,
            span_names.REQUEST_TEMPERATURE: sampling.temperature,
            span_names.REQUEST_TOP_P: sampling.top_p,
        }
        if sampling.top_k:
            attributes[span_names.REQUEST_TOP_K] = sampling.top_k
        self._span.set(attributes)

    def finish(self, answers: Answers) -> None:
        """Every request has ended. The call failed where one of them did."""
        if not self._span.is_recording:
            return
        figures = figures_of(answers, self._answers_per_prompt)
        outcomes = [request.end.outcome for request in answers.requests if request.end is not None]
        failures = [outcome for outcome in outcomes if not outcome.is_success]
        attributes: dict[str, Value] = {
            span_names.USAGE_INPUT_TOKENS: figures.prompt_tokens,
            span_names.USAGE_OUTPUT_TOKENS: figures.completion_tokens,
            span_names.USAGE_CACHED_TOKENS: figures.cached_tokens,
            span_names.RESPONSE_FINISH_REASONS: [str(outcome) for outcome in outcomes],
            span_names.RESPONSE_TIME_TO_FIRST_CHUNK: figures.ttft_s,
            span_names.RETRIES: sum(request.retries for request in answers.requests),
            span_names.DECODE_WORKERS: sorted({each.decode.name for each in answers.requests if each.decode is not None}),
            span_names.PREFILL_WORKERS: sorted({each.prefill.name for each in answers.requests if each.prefill is not None}),
        }
        if not any(request.owes_figures for request in answers.requests):  # or the workers have not said yet what it cost
            attributes[span_names.COST_USD] = figures.cost_usd
        self._span.end((failures or outcomes)[0], attributes)


def context_of(headers: Mapping[str, str]) -> TraceContext:
    """What a client's headers, or its gRPC metadata, name as the parent."""
    return TraceContext(headers.get("traceparent", ""), headers.get("tracestate", ""))


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, ServalError):
        return error.outcome
    return Outcome.CANCELLED if isinstance(error, asyncio.CancelledError) else Outcome.INTERNAL
