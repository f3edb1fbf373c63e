"""What an answer may have been asked for when its decode worker is lost: an endpoint of OpenAI's API, and the request's body."""

from tests.integration.continuation_views import CHAT, COMPLETIONS, Json

PROMPT = [(7 * step) % 251 for step in range(50)]
QUESTION = "What is the weather where you are?"
DOCUMENT = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
FUNCTIONS = [{"name": name, "strict": True, "parameters": DOCUMENT} for name in ("look_up", "write")]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "document", "schema": DOCUMENT, "strict": True}}
DRAWN = {"temperature": 1.1, "top_p": 0.95, "top_k": 200, "seed": 11}
COUNTED = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.3, "min_tokens": 10}

COMPLETION = {"prompt": PROMPT, "max_tokens": 20}
CHATTING = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
CALLING = {**CHATTING, "tools": [{"type": "function", "function": each} for each in FUNCTIONS], "tool_choice": "required"}

KINDS: dict[str, tuple[str, Json]] = {
    "greedy": (COMPLETIONS, {**COMPLETION, "temperature": 0, "ignore_eos": True}),
    "seeded": (COMPLETIONS, {**COMPLETION, **DRAWN, "ignore_eos": True}),
    "three answers": (COMPLETIONS, {**COMPLETION, **DRAWN, "n": 3, "ignore_eos": True}),
    "two prompts": (COMPLETIONS, {**COMPLETION, **DRAWN, "prompt": [PROMPT, PROMPT[::-1]], "ignore_eos": True}),
    "logprobs, echo, penalties": (
        COMPLETIONS,
        {**COMPLETION, **DRAWN, **COUNTED, "logprobs": 4, "echo": True, "logit_bias": {"65": 3, "66": -100}},
    ),
    "regular expression": (COMPLETIONS, {**COMPLETION, **DRAWN, "guided_regex": "([a-z]{1,4}[0-9]{2} ){3,6}"}),
    "chat with logprobs": (CHAT, {**CHATTING, **DRAWN, **COUNTED, "logprobs": True, "top_logprobs": 3}),
    "JSON schema": (CHAT, {**CHATTING, **DRAWN, "response_format": SCHEMA, "max_tokens": 80, "logprobs": True}),
    "tool calls": (CHAT, {**CALLING, **DRAWN, "max_tokens": 120, "n": 2}),
}
