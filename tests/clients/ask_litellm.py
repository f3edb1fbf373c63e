"""What a user of litellm writes, against an OpenAI-compatible server: python ask_litellm.py BASE_URL MODEL. Prints JSON."""

import asyncio
import json
import sys

import litellm

base_url, model = sys.argv[1:]
ASK = {
    "model": f"openai/{model}",
    "api_base": base_url,
    "api_key": "none",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 32,
    "num_retries": 0,
}

whole = litellm.completion(**ASK)
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ASK, stream=True)]
waited_for = asyncio.run(litellm.acompletion(**ASK))
text = litellm.text_completion(
    model=f"text-completion-openai/{model}",
    api_base=base_url,
    api_key="none",
    prompt="The capital of France is",
    temperature=0,
    max_tokens=4,
)
schema = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}},
    "required": ["capital"],
    "additionalProperties": False,
}
structured = litellm.completion(
    **{**ASK, "max_tokens": 64},
    response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
)
tool = {"type": "function", "function": {"name": "note", "description": "Notes a capital.", "parameters": schema}}
called = litellm.completion(
    **{**ASK, "max_tokens": 64}, tools=[tool], tool_choice={"type": "function", "function": {"name": "note"}}
)
try:
    litellm.completion(**{**ASK, "max_tokens": -1})
    refused = ""
except litellm.exceptions.BadRequestError as error:
    refused = str(error)

print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "finish_reason": whole.choices[0].finish_reason,
            "prompt_tokens": whole.usage.prompt_tokens,
            "pieces": pieces,
            "waited_for": waited_for.choices[0].message.content,
            "text": text.choices[0].text,
            "structured": structured.choices[0].message.content,
            "tool": called.choices[0].message.tool_calls[0].function.name,
            "arguments": called.choices[0].message.tool_calls[0].function.arguments,
            "refused": refused,
        }
    )
)
