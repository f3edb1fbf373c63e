"""OpenAI's chat completions, completions and vLLM's tokenize: bodies in, replies out."""
