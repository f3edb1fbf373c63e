"""OpenAI's Responses API, on the way of chat completions."""
