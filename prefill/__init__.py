"""The prefill worker: computes prompts in chunks and sends each layer's KV as soon as it is there."""
