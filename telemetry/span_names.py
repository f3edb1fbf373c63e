"""Every span name and attribute of Serval, once.

`gen_ai.*` and `error.type` are OpenTelemetry's GenAI semantic conventions; what they have no word for is `serval.*`. Seconds and
bytes are in the names. Attributes that would hold what a client wrote (prompts, answers, stop strings, schemas) are left out.
"""

# ---- spans
DECODE = "decode"
PREFILL = "prefill"
KV_TRANSFER = "kv_transfer"

# ---- semantic conventions
ERROR_TYPE = "error.type"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
OUTPUT_TYPE = "gen_ai.output.type"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_CHOICES = "gen_ai.request.choice.count"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"

# ---- our own, on every span
OUTCOME = "serval.outcome"
REQUEST_ID = "serval.request_id"

# ---- router
TENANT = "serval.tenant"
DECODE_WORKERS = "serval.decode_workers"
PREFILL_WORKERS = "serval.prefill_workers"
RETRIES = "serval.retries"
COST_USD = "serval.cost_usd"

# ---- decode and prefill
PROMPT_TOKENS = "serval.prompt_tokens"
CACHED_TOKENS = "serval.cached_tokens"
OUTPUT_TOKENS = "serval.output_tokens"
DRAFTED_TOKENS = "serval.drafted_tokens"
ACCEPTED_TOKENS = "serval.accepted_tokens"
PREFILL_WORKER = "serval.prefill_worker"
PREFILLED_LOCALLY = "serval.prefilled_locally"
QUEUE_S = "serval.queue_s"
PREFILL_S = "serval.prefill_s"
DECODE_S = "serval.decode_s"
TRANSFER_S = "serval.transfer_s"
TRANSFER_EXPOSED_S = "serval.transfer_exposed_s"
TRANSFER_BYTES = "serval.transfer_bytes"
TRANSFER_WRITES = "serval.transfer_writes"
TRANSFER_DESCRIPTORS = "serval.transfer_descriptors"
QUIESCED = "serval.quiesced"
